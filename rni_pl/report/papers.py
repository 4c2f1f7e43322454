"""The paper's tables: runs at its settings beside published figures."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rni_pl.report.budgets import distinct
from rni_pl.report.collect import Run
from rni_pl.report.comparison import accuracy, row_of, task_of
from rni_pl.report.departures import Judged
from rni_pl.report.grids import NOTHING, Grid, percent, ratio_name
from rni_pl.report.published import Published, beside
from rni_pl.report.tables import COLOURS


@dataclass(frozen=True)
class Captioned:
    """A table, and what must be said of it."""

    grid: Grid
    caption: str


def paper(judged: Sequence[Judged]) -> Captioned | None:
    """Networks and data sets by method and ratio: ours at the paper's settings, and others' below.

    None where no run has the paper's settings, but for its number of epochs, on a network and data
    set that figures are published of.

    Raises:
        ConfigError: runs that differ in more than their seed would share a cell.
    """
    mine = [one for one in judged if _is_the_papers(one)]
    tasks = sorted({task_of(one.run) for one in mine})
    if not mine:
        return None
    sources = [source for task in tasks for source in beside(*task)]
    known, others = _methods(mine, sources)
    ratios = dict.fromkeys(
        ratio for source in sources for of in source.accuracies.values() for ratio in of
    )
    columns = [(method, ratio) for method in (*known, *others) for ratio in ratios]
    rows = []
    for dataset, arch in tasks:
        name = f"{arch} on {dataset}"
        runs = [one for one in mine if task_of(one.run) == (dataset, arch)]
        for budget in distinct(one.budget for one in runs):
            cells = _cells([one for one in runs if budget.holds(one.budget)], columns)
            rows.append([name, f"ours, {budget} epochs", *cells])
        for source in beside(dataset, arch):
            rows.append([name, f"{source.name}, {source.budget} epochs", *_of(source, columns)])
    heads = [f"{method} {ratio_name(ratio)}" for method, ratio in columns]
    caption = ["Test accuracy in percent, after fine-tuning where channels were removed."]
    caption += [_conditions(mine, others), *_sources(tasks, mine)]
    return Captioned(
        Grid(["network and data", "figures", *heads], rows, texts=2), " ".join(caption)
    )


def _is_the_papers(one: Judged) -> bool:
    """Whether a run has the paper's settings, on what figures are published of."""
    departs = one.off.penalty or one.off.are_switches or one.off.beyond
    return not departs and bool(beside(*task_of(one.run)))


def _methods(mine: Iterable[Judged], sources: Iterable[Published]) -> tuple[list[str], list[str]]:
    """Methods that figures are published of, and those of ours alone."""
    published = {method for source in sources for method in source.accuracies}
    known = [method for method in COLOURS if method in published]
    return known, sorted({one.run.summary["method"] for one in mine} - set(known))


def _of(source: Published, columns: Iterable[tuple[str, float | None]]) -> list[str]:
    found = [source.accuracies.get(method, {}).get(ratio) for method, ratio in columns]
    return [NOTHING if value is None else f"{value:.2f}" for value in found]


def _cells(runs: Sequence[Judged], columns: Iterable[tuple[str, float | None]]) -> list[str]:
    cells = []
    for method, ratio in columns:
        row = row_of([one for one in runs if _is_of(one.run, method, ratio)])
        cells.append(percent(accuracy(row)) if row else NOTHING)
    return cells


def _is_of(run: Run, method: str, ratio: float | None) -> bool:
    return run.summary["method"] == method and run.ratio == ratio


def _conditions(runs: Iterable[Judged], of_others: Sequence[str]) -> str:
    """How ours came about, as the runs have it; `of_others`: methods that the paper lacks."""
    runs = list(runs)
    data = ", ".join(sorted({one.run.summary["dataset"] for one in runs}))
    seeds = sorted({str(one.run.summary.get("seed", "unknown")) for one in runs})
    these = f"seed {seeds[0]}"
    if len(seeds) > 1:
        these = f"where ± is given, two or more of the seeds {', '.join(seeds)}, else one of them"
    lacks = f" (it has no {' or '.join(of_others)})" if of_others else ""
    return (
        f"Ours: {data}; {these}; the paper's hyper-parameters{lacks} and protocol (the "
        "best epoch is picked on the test set)."
    )


def _sources(tasks: Iterable[tuple[str, str]], mine: Sequence[Judged]) -> list[str]:
    """Where others' figures come from, and in what their conditions differ from ours."""
    said: dict[str, list[str]] = {}
    for dataset, arch in tasks:
        budgets = distinct(one.budget for one in mine if task_of(one.run) == (dataset, arch))
        for source in beside(dataset, arch):
            apart = said.setdefault(f"{source.name.capitalize()}: {source.source}", [])
            if dataset == source.dataset and all(source.budget.holds(b) for b in budgets):
                continue
            ours = " and ".join(map(str, budgets))
            apart.append(
                f"{arch} {source.budget} epochs on {source.dataset}, ours {ours} on {dataset}"
            )
    return [
        f"{source} (not the conditions of ours: {'; '.join(apart)})." if apart else f"{source}."
        for source, apart in said.items()
    ]
