"""The command: python -m rni_pl.report RUNS [RUNS ...] [--output DIR]."""

import argparse
import sys
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
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUNS", help="a directory, or a runs.csv of a report"
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="where the report goes (default: the first RUNS)"
    )
    given = parser.parse_args(arguments)
    places = [place.expanduser() for place in given.runs]
    first = places[0] if places[0].is_dir() else places[0].parent
    try:
        _write(places, given.output.expanduser() if given.output else first)
    except (RniError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


def _write(places: list[Path], folder: Path) -> None:
    try:
        from rni_pl.report import page, runs
    except ModuleNotFoundError as error:
        if error.name not in ("matplotlib", "jinja2", "pandas"):
            raise
        raise ConfigError(f"the report needs {error.name}: pip install 'rni_pl[report]'") from error
    with busy("looking for runs") as announce:
        found = runs.read(places)
        if found.table.empty and not found.problems:
            raise ConfigError(f"no runs in or below {', '.join(map(str, places))}")
        announce(f"drawing {len(found.table)} runs")
        written = page.write(found, folder)
    for problem in dict.fromkeys(found.problems):
        print(f"{problem.run}: {problem.reason}", file=sys.stderr)
    for path in written:
        print(path)


if __name__ == "__main__":
    main()
