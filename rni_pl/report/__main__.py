"""The command: python -m rni_pl.report DIR [DIR ...] [--output DIR] [--fill PAGE] [--store DIR]."""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from rni_pl.errors import ConfigError, RniError


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

    found = collect(given.directories)
    if not found.runs and not found.problems:
        raise ConfigError(f"no runs in or below {', '.join(map(str, given.directories))}")
    problems, written = list(found.problems), []
    if given.store:
        written += storing.store(found, given.store)
    for page in given.fill:
        problems += pages.fill(page, found)
        written.append(page)
    if given.output or not written:
        report = render.make_report(found, _track)
        problems = report.problems
        written += render.write(report, given.output or given.directories[0])
    for problem in problems:
        print(f"{problem.name}: {problem.reason}", file=sys.stderr)
    for path in written:
        print(path)


def _track(items: Iterable) -> Iterable:
    """A progress bar while checkpoints are read, on a terminal."""
    if not sys.stderr.isatty():
        return items
    from rich.console import Console
    from rich.progress import track

    return track(items, "reading checkpoints", console=Console(stderr=True), transient=True)


if __name__ == "__main__":
    main()
