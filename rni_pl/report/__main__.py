"""The command: python -m rni_pl.report DIR [DIR ...] [--output DIR]."""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NoReturn

from rni_pl.errors import ConfigError, RniError
from rni_pl.progress import busy


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, as from the other commands."""
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)


def main(arguments: list[str] | None = None) -> None:
    """Write the report; a mistake becomes one line and exit status 2."""
    parser = _Parser(
        prog="python -m rni_pl.report",
        description="Tables and plots over all runs in and below some directories.",
    )
    parser.add_argument("directories", nargs="+", type=Path, metavar="DIR")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="where the report goes (default: the first DIR)"
    )
    given = parser.parse_args(arguments)
    try:
        _report(given.directories, given.output or given.directories[0])
    except (RniError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


def _report(directories: list[Path], output: Path) -> None:
    try:
        from rni_pl.report import render
    except ModuleNotFoundError as error:
        if error.name not in ("matplotlib", "jinja2"):
            raise
        raise ConfigError(f"the report needs {error.name}: pip install 'rni_pl[report]'") from error
    from rni_pl.report.collect import collect

    with busy("looking for runs") as announce:
        found = collect(directories)
        if not found.runs and not found.problems:
            raise ConfigError(f"no runs in or below {', '.join(map(str, directories))}")
        report = render.make_report(found, partial(_read, announce))
        announce("writing")
        paths = render.write(report, output)
    for problem in report.problems:
        print(f"{problem.name}: {problem.reason}", file=sys.stderr)
    for path in paths:
        print(path)


def _read(announce: Callable[[str], None], checkpoints: Iterable) -> Iterator:
    """Says which checkpoint is being read, and when all are."""
    items = list(checkpoints)
    for number, item in enumerate(items, 1):
        announce(f"reading checkpoint {number} of {len(items)}")
        yield item
    announce("drawing")


if __name__ == "__main__":
    main()
