"""Filling the marked places of a Markdown page with tables and drawings made from runs.

A place is everything between two comments, which stay:

    <!-- table budget: resnet56 on digits -->
    <!-- end -->

What follows the colon, if anything, is the one network and data set to be shown, with the budget
(`resnet56 on digits, 8 + 4 epochs`) where there are several and one is meant.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rni_pl.errors import ConfigError
from rni_pl.files import write_whole
from rni_pl.report import comparison, grids, plots
from rni_pl.report.collect import Found, Problem
from rni_pl.report.departures import Judged, judge
from rni_pl.report.grids import Grid
from rni_pl.report.importances import read_distributions
from rni_pl.report.plots import Plot
from rni_pl.report.tables import Table, tabulate

BEGIN = re.compile(r"^<!-- (table|figure) (\S+?)(?:: (.+?))? -->$")
END = "<!-- end -->"
DRAWINGS = "figures"  # the folder beside the page
NOT_KNOWN = "compared with nothing: its settings, or those of its training run, are not known"
NO_RUNS = "No run of this kind is stored."


@dataclass
class Shown:
    """What pages are filled with.

    Attributes:
        found: the runs.
        judged: those whose settings are known.
        drawings: name of a file -> SVG, of the figures that were asked for.
        problems: what could not be read.
    """

    found: Found
    judged: list[Judged]
    drawings: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def tables(self, of: str | None, all_runs: bool = False) -> list[Table]:
        """Those of runs without a switch, or of all runs."""
        found = tabulate(self.found.runs) if all_runs else comparison.at_budget(self.judged)
        return [table for table in found if of in (None, _task_of(table), name(table))]


def name(table: Table) -> str:
    """What a page calls a table."""
    return ", ".join([_task_of(table), *([table.budget] if table.budget else [])])


def _task_of(table: Table) -> str:
    return f"{table.arch} on {table.dataset}"


def fill(page: Path, found: Found) -> list[Problem]:
    """Fill the marked places of `page`, and write its drawings beside it; what could not be read.

    Raises:
        ConfigError: no place is marked, a mark is wrong, or runs do not fit together.
    """
    judged = judge(found.runs)
    known = {one.run.path for one in judged}
    left_out = [Problem(run.name, NOT_KNOWN) for run in found.runs if run.path not in known]
    shown = Shown(found, judged, problems=left_out)
    text = filled(page.read_text(encoding="utf-8"), shown, str(page))
    if shown.drawings:
        (page.parent / DRAWINGS).mkdir(exist_ok=True)
    for file, svg in shown.drawings.items():
        write_whole(page.parent / DRAWINGS / file, svg)
    write_whole(page, text)
    return shown.problems


def filled(text: str, shown: Shown, page: str) -> str:
    """The text of a page with its marked places filled."""
    lines, inside = [], 0
    for number, line in enumerate(text.splitlines(), 1):
        mark = BEGIN.match(line)
        if mark and inside:
            raise ConfigError(f"{page}, line {inside}: no {END} before the next place")
        if line == END and not inside:
            raise ConfigError(f"{page}, line {number}: {END} without a beginning")
        if mark:
            inside = number
            lines += [line, *_place(mark, shown, f"{page}, line {number}"), END]
        elif line == END:
            inside = 0
        elif not inside:
            lines.append(line)
    if inside:
        raise ConfigError(f"{page}, line {inside}: no {END}")
    if END not in lines:
        raise ConfigError(f"{page} has no place to fill, such as <!-- table budget --> {END}")
    return "\n".join(lines) + "\n"


def _place(mark: re.Match, shown: Shown, where: str) -> list[str]:
    kind, name_of, of = mark.groups()
    makers = TABLES if kind == "table" else FIGURES
    if name_of not in makers:
        raise ConfigError(f"{where}: {kind} {name_of} is unknown; allowed: {', '.join(makers)}")
    parts = makers[name_of](shown, of) or [NO_RUNS]
    return ["", "\n\n".join(part.strip() for part in parts), ""]


def _each(grid: Callable[[Table], Grid | None], all_runs: bool = False) -> Callable:
    """A table for each network and data set, by name where there is more than one."""

    def make(shown: Shown, of: str | None) -> list[str]:
        tables = [(name(t), grid(t)) for t in shown.tables(of, all_runs)]
        return _named([(title, found) for title, found in tables if found and found.rows], of)

    return make


def _named(tables: Sequence[tuple[str, Grid]], of: str | None) -> list[str]:
    parts = []
    for title, grid in tables:
        parts += [] if of else [f"{grids.markdown_text(title)}:"]
        parts.append(grids.markdown(grid))
    return parts


def _paper(shown: Shown, of: str | None) -> list[str]:
    found = comparison.paper([one for one in shown.judged if of in (None, _task(one))])
    return [grids.markdown(found.grid), found.caption] if found else []


def _task(one: Judged) -> str:
    return f"{one.run.summary['arch']} on {one.run.summary['dataset']}"


def _switches(shown: Shown, of: str | None) -> list[str]:
    tasks = sorted({_task(one) for one in shown.judged if of in (None, _task(one))})
    tables = [
        (task, comparison.switches([one for one in shown.judged if _task(one) == task]))
        for task in tasks
    ]
    return _named([(task, grid) for task, grid in tables if grid], of)


def _modes(shown: Shown, of: str | None) -> list[str]:
    tables = [
        (name(table), comparison.modes(read_distributions(table, shown.problems)))
        for table in shown.tables(of)
    ]
    return _named([(title, grid) for title, grid in tables if grid], of)


def _importances(shown: Shown, of: str | None) -> list[str]:
    drawn = []
    for table in shown.tables(of):
        distributions = read_distributions(table, shown.problems)
        if distributions:
            colours = plots.method_colours([table])
            title = f"Importances, {name(table)}"
            drawn.append(plots.side_by_side(distributions, colours, title))
    return _drawn(drawn, shown)


def _curves(shown: Shown, of: str | None) -> list[str]:
    drawn = []
    for table in shown.tables(of):
        for plot in plots.curves(table, plots.method_colours([table])):
            drawn.append(Plot(f"{plot.title}, {name(table)}", plot.svg))
    return _drawn(drawn, shown)


def _drawn(drawn: Sequence[Plot], shown: Shown) -> list[str]:
    """Drawings by reference, each with what there is to say about it."""
    parts = []
    for plot in drawn:
        file = re.sub(r"[^a-z0-9.]+", "_", plot.title.lower()).strip("_") + ".svg"
        shown.drawings[file] = plot.svg
        parts.append(f"![{grids.markdown_text(plot.title)}]({DRAWINGS}/{file})")
        parts += [f"{grids.markdown_text(plot.note)}."] if plot.note else []
    return parts


Maker = Callable[[Shown, str | None], list[str]]

TABLES: dict[str, Maker] = {
    "paper": _paper,
    "accuracy": _each(grids.by_ratio),
    "budget": _each(comparison.budget),
    "switches": _switches,
    "modes": _modes,
    "all": _each(comparison.budget, all_runs=True),
}
FIGURES: dict[str, Maker] = {"importances": _importances, "curves": _curves}
