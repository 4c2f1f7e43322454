"""Filling the marked places of a Markdown page with tables and drawings made from runs.

A place is everything between two comments, which stay:

    <!-- table budget: resnet56 on digits -->
    <!-- end -->

What follows the colon, if anything, is the one network and data set to be shown; of the kinds that
have a table for each budget, one of them may be meant (`resnet56 on digits, 8 + 4 epochs`).
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rni_pl.errors import ConfigError
from rni_pl.report import comparison, grids, papers, plots
from rni_pl.report.collect import Found, Problem
from rni_pl.report.departures import Judged, judge
from rni_pl.report.grids import Grid
from rni_pl.report.importances import read_distributions
from rni_pl.report.plots import Plot
from rni_pl.report.tables import Table, tabulate
from rni_pl.runs.files import write_whole

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

    def all_runs(self, of: str | None) -> dict[str, Table]:
        """Tables of all runs by title, or those that `of` names."""
        return _titled(tabulate(self.found.runs), of)

    def at_budget(self, of: str | None) -> dict[str, Table]:
        """Tables of runs without a switch by title, or those that `of` names."""
        return _titled(comparison.at_budget(self.judged), of)

    def dense_networks(self, of: str | None) -> dict[str, Table]:
        """Tables of dense networks without a switch by title, or those that `of` names."""
        return _titled(comparison.dense_networks(self.judged), of)


def _titled(tables: Sequence[Table], of: str | None) -> dict[str, Table]:
    """Titles are network and data set, and the budget where there are several."""
    tasks = [_task(table.dataset, table.arch) for table in tables]
    titled = {}
    for task, table in zip(tasks, tables, strict=True):
        long = f"{task}, {table.budget} epochs"
        if of in (None, task, long):
            titled[long if tasks.count(task) > 1 else task] = table
    return titled


def _task(dataset: str, arch: str) -> str:
    return f"{arch} on {dataset}"


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


Maker = Callable[[Shown, str | None], list[str]]


def _place(mark: re.Match, shown: Shown, where: str) -> list[str]:
    kind, name_of, of = mark.groups()
    makers = TABLES if kind == "table" else FIGURES
    if name_of not in makers:
        raise ConfigError(f"{where}: {kind} {name_of} is unknown; allowed: {', '.join(makers)}")
    parts = makers[name_of](shown, of)
    if of and not parts:
        shown.problems.append(Problem(where, f"no run of this kind for {of}"))
    parts = parts or [NO_RUNS]
    return ["", "\n\n".join(part.strip() for part in parts), ""]


def _each(grid: Callable[[Table], Grid | None], tables: Callable) -> Maker:
    """A table for each network and data set, by name where there is more than one."""

    def make(shown: Shown, of: str | None) -> list[str]:
        return _named([(title, grid(table)) for title, table in tables(shown, of).items()], of)

    return make


def _named(tables: Sequence[tuple[str, Grid | None]], of: str | None) -> list[str]:
    """Those that have rows, with their titles but where the mark says it all."""
    filled = [(title, grid) for title, grid in tables if grid and grid.rows]
    parts = []
    for title, grid in filled:
        parts += [] if of and len(filled) == 1 else [f"{grids.markdown_text(title)}:"]
        parts.append(grids.markdown(grid))
    return parts


def _paper(shown: Shown, of: str | None) -> list[str]:
    found = papers.paper([one for one in shown.judged if of in (None, _task_of(one))])
    return [grids.markdown(found.grid), found.caption] if found else []


def _task_of(one: Judged) -> str:
    return _task(*comparison.task_of(one.run))


def _switches(shown: Shown, of: str | None) -> list[str]:
    tasks = sorted({_task_of(one) for one in shown.judged if of in (None, _task_of(one))})
    tables = [
        (task, comparison.switches([one for one in shown.judged if _task_of(one) == task]))
        for task in tasks
    ]
    return _named(tables, of)


def _modes(shown: Shown, of: str | None) -> list[str]:
    tables = [
        (title, comparison.modes(read_distributions(table, shown.problems)))
        for title, table in shown.dense_networks(of).items()
    ]
    return _named(tables, of)


def _importances(shown: Shown, of: str | None) -> list[str]:
    drawn = []
    for title, table in shown.dense_networks(of).items():
        distributions = read_distributions(table, shown.problems)
        if distributions:
            colours = plots.method_colours([table])
            drawn.append(plots.side_by_side(distributions, colours, f"Importances, {title}"))
    return _drawn(drawn, shown)


def _curves(shown: Shown, of: str | None) -> list[str]:
    drawn = []
    for title, table in shown.at_budget(of).items():
        for plot in plots.curves(table, plots.method_colours([table])):
            drawn.append(Plot(f"{plot.title}, {title}", plot.svg))
    return _drawn(drawn, shown)


def _drawn(drawn: Sequence[Plot], shown: Shown) -> list[str]:
    """Drawings by reference, each with what there is to say about it."""
    parts = []
    for plot in drawn:
        stem = re.sub(r"[^a-z0-9.]+", "_", plot.title.lower()).strip("_")
        file = f"{stem}.svg"
        if shown.drawings.get(file, plot.svg) != plot.svg:
            raise ConfigError(f"two drawings would be {file}; give the data sets other names")
        shown.drawings[file] = plot.svg
        parts.append(f"![{grids.markdown_text(plot.title)}]({DRAWINGS}/{file})")
        parts += [f"{grids.markdown_text(plot.note)}."] if plot.note else []
    return parts


TABLES: dict[str, Maker] = {
    "paper": _paper,
    "accuracy": _each(grids.by_ratio_with_macs, Shown.at_budget),
    "budget": _each(comparison.costs, Shown.at_budget),
    "switches": _switches,
    "modes": _modes,
    "all": _each(comparison.costs, Shown.all_runs),
}
FIGURES: dict[str, Maker] = {"importances": _importances, "curves": _curves}
