"""The command: python -m rni_pl.report DIR [DIR ...] [--output DIR] [--fill PAGE] [--store DIR]."""

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
    parser.add_argument(
        "--fill", type=Path, metavar="PAGE", action="append", default=[],
        help="fill the marked places of a Markdown page instead",
    )  # fmt: skip
    parser.add_argument(
        "--store", type=Path, metavar="DIR",
        help="copy what pages need of the runs, without checkpoints and paths, instead",
    )  # fmt: skip
    given = parser.parse_args(arguments)
    try:
        _run(given)
    except (RniError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


def _run(given: argparse.Namespace) -> None:
    try:
        from rni_pl.report import pages, render, storing
    except ModuleNotFoundError as error:
        if error.name not in ("matplotlib", "jinja2"):
            raise
        raise ConfigError(f"the report needs {error.name}: pip install 'rni_pl[report]'") from error
    from rni_pl.report.collect import collect

    problems: list = []
    written: list[Path] = []
    with busy("looking for runs") as announce:
        found = collect(given.directories)
        if not found.runs and not found.problems:
            raise ConfigError(f"no runs in or below {', '.join(map(str, given.directories))}")
        problems = list(found.problems)
        if given.store:
            written += storing.store(found, given.store)
        for page in given.fill:
            announce(f"filling {page}")
            problems += pages.fill(page, found)
            written.append(page)
        if given.output or not written:
            report = render.make_report(found, partial(_read, announce))
            problems += report.problems
            announce("writing")
            written += render.write(report, given.output or given.directories[0])
    for problem in dict.fromkeys(problems):
        print(f"{problem.name}: {problem.reason}", file=sys.stderr)
    for path in written:
        print(path)


def _read(announce: Callable[[str], None], checkpoints: Iterable) -> Iterator:
    """Says which checkpoint is being read, and when all are."""
    items = list(checkpoints)
    for number, item in enumerate(items, 1):
        announce(f"reading the checkpoints of row {number} of {len(items)}")
        yield item
    announce("drawing")


if __name__ == "__main__":
    main()
