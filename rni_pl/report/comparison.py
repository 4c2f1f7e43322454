"""Tables that compare: with published figures, at one budget, with and without a switch."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from rni_pl.errors import ConfigError
from rni_pl.report.collect import Run
from rni_pl.report.departures import Judged
from rni_pl.report.grids import NOTHING, Grid, count, percent, ratio_name, removed
from rni_pl.report.importances import LIMITS, Distribution
from rni_pl.report.published import Published, beside
from rni_pl.report.tables import COLOURS, Row, Stat, Table, stat, tabulate

SEVERE = 0.9  # the ratio at which switches are compared


@dataclass(frozen=True)
class Captioned:
    """A table, and what must be said of it."""

    grid: Grid
    caption: str


# The paper's tables.


def paper(judged: Sequence[Judged]) -> Captioned | None:
    """Networks and data sets by method and ratio: ours at the paper's settings, and others' below.

    None where no run has the paper's settings, but for its number of epochs, on a network and data
    set that figures are published of.

    Raises:
        ConfigError: runs that differ in more than their seed would share a cell.
    """
    plain = [one for one in judged if not one.off.penalty and not one.off.are_switches]
    tasks = sorted({_task(one.run) for one in plain})
    tasks = [task for task in tasks if beside(*task)]
    mine = [one for one in plain if _task(one.run) in tasks]
    if not mine:
        return None
    columns = _columns(mine, [source for task in tasks for source in beside(*task)])
    rows = []
    for dataset, arch in tasks:
        name = f"{arch} on {dataset}"
        runs = [one for one in mine if _task(one.run) == (dataset, arch)]
        for epochs in _budgets(runs):
            cells = _cells(_of_budget(runs, epochs), columns)
            rows.append([name, f"ours, {_epochs(epochs)} epochs", *cells])
        for source in beside(dataset, arch):
            rows.append([name, _named(source), *_reported(source, columns)])
    heads = [f"{method} {ratio_name(ratio)}" for method, ratio in columns]
    caption = ["Test accuracy in percent, after fine-tuning where channels were removed."]
    caption += [_conditions(mine), *_sources(tasks, mine)]
    return Captioned(
        Grid(["network and data", "figures", *heads], rows, texts=2), " ".join(caption)
    )


def _task(run: Run) -> tuple[str, str]:
    return run.summary["dataset"], run.summary["arch"]


def _columns(
    mine: Iterable[Judged], sources: Sequence[Published]
) -> list[tuple[str, float | None]]:
    """Each method with the ratios that are published; methods of ours alone come last."""
    published = {method for source in sources for method in source.accuracies}
    ratios = dict.fromkeys(
        ratio for source in sources for of in source.accuracies.values() for ratio in of
    )
    known = [method for method in COLOURS if method in published]
    others = sorted({one.run.summary["method"] for one in mine} - set(known))
    return [(method, ratio) for method in (*known, *others) for ratio in ratios]


def _budgets(runs: Iterable[Judged]) -> list[tuple[int | None, int | None]]:
    """Epochs of training and fine-tuning, each pair once; dense networks join what they led to."""
    pairs = {one.epochs for one in runs}
    tuned = {trained for trained, tuning in pairs if tuning is not None}
    pairs = {pair for pair in pairs if pair[1] is not None or pair[0] not in tuned}
    return sorted(pairs, key=lambda pair: (pair[0] or 0, pair[1] or 0))


def _of_budget(runs: Iterable[Judged], epochs: tuple[int | None, int | None]) -> list[Judged]:
    return [one for one in runs if one.epochs in (epochs, (epochs[0], None))]


def _epochs(epochs: tuple[int | None, int | None]) -> str:
    return " + ".join(str(number) for number in epochs if number is not None) or "unknown"


def _named(source: Published) -> str:
    return f"{source.name}, {_epochs(source.epochs)} epochs"


def _reported(source: Published, columns: Iterable[tuple[str, float | None]]) -> list[str]:
    found = [source.accuracies.get(method, {}).get(ratio) for method, ratio in columns]
    return [NOTHING if value is None else f"{value:.2f}" for value in found]


def _cells(runs: Sequence[Judged], columns: Iterable[tuple[str, float | None]]) -> list[str]:
    cells = []
    for method, ratio in columns:
        row = _row([one for one in runs if _is_of(one.run, method, ratio)])
        cells.append(percent(accuracy(row)) if row else NOTHING)
    return cells


def _is_of(run: Run, method: str, ratio: float | None) -> bool:
    return run.summary["method"] == method and run.summary.get("ratio") == ratio


def _row(runs: Sequence[Judged]) -> Row | None:
    """Runs of one method and ratio as one row; None for no runs.

    Raises:
        ConfigError: they differ in more than their seed.
    """
    if not runs:
        return None
    trained = {one.trained.path: one.trained for one in runs}  # says what led to each
    (table,) = tabulate({**trained, **{one.run.path: one.run for one in runs}}.values())
    rows = [row for row in table.rows if row.ratio == runs[0].run.summary.get("ratio")]
    if len(rows) > 1:
        labels = " and ".join(f"{row.runs[0].name} ({row.variant.label})" for row in rows)
        raise ConfigError(f"runs of one cell differ in more than their seed: {labels}")
    return rows[0]


def accuracy(row: Row) -> Stat:
    """What a row's runs ended with."""
    return row.figures["acc_dense" if row.ratio is None else "acc_finetuned"]


def _conditions(runs: Iterable[Judged]) -> str:
    """How ours came about, as the runs have it."""
    runs = list(runs)
    data = ", ".join(sorted({one.run.summary["dataset"] for one in runs}))
    seeds = sorted({str(one.run.summary.get("seed", "unknown")) for one in runs})
    word = "seed" if len(seeds) == 1 else "seeds"
    return (
        f"Ours: {data}; {word} {', '.join(seeds)}; the paper's hyper-parameters and protocol (the "
        "best epoch is picked on the test set)."
    )


def _sources(tasks: Iterable[tuple[str, str]], mine: Sequence[Judged]) -> list[str]:
    """Where others' figures come from, and in what their conditions differ from ours."""
    said: dict[str, list[str]] = {}
    for dataset, arch in tasks:
        budgets = _budgets(one for one in mine if _task(one.run) == (dataset, arch))
        for source in beside(dataset, arch):
            apart = said.setdefault(f"{source.name.capitalize()}: {source.source}", [])
            if dataset == source.dataset and all(_within(b, source.epochs) for b in budgets):
                continue
            ours = " and ".join(_epochs(b) for b in budgets)
            apart.append(
                f"{arch} {_epochs(source.epochs)} epochs on {source.dataset}, ours {ours} on "
                f"{dataset}"
            )
    return [
        f"{source} (not the conditions of ours: {'; '.join(apart)})." if apart else f"{source}."
        for source, apart in said.items()
    ]


def _within(budget: tuple[int | None, int | None], epochs: tuple[int, int]) -> bool:
    """Whether these are the epochs of a source, as far as ours went."""
    return budget in (epochs, (epochs[0], None))


# One budget.


def at_budget(judged: Iterable[Judged]) -> list[Table]:
    """Tables of the runs without a switch, whatever the weight of their penalty.

    A network and data set that has runs of several budgets has a table for each.
    """
    plain = [one for one in judged if not one.off.are_switches]
    found = []
    for task in sorted({_task(one.run) for one in plain}):
        mine = [one for one in plain if _task(one.run) == task]
        budgets = _budgets(mine)
        for epochs in budgets:
            (table,) = tabulate(one.run for one in _of_budget(mine, epochs))
            said = f"{_epochs(epochs)} epochs" if len(budgets) > 1 else ""
            found.append(replace(table, budget=said))
    return found


def budget(table: Table) -> Grid:
    """Every row of a table with its budget: epochs, time, precision and seeds."""
    header = [
        "method",
        "ratio",
        "accuracy",
        "after removal",
        "best epoch (from 0)",
        "epochs",
        "parameters",
    ]
    header += ["removed", "MACs", "removed", "seconds", "precision", "seed"]
    return Grid(header, [_budget_row(row) for row in table.rows])


def _budget_row(row: Row) -> list[str]:
    figures = row.figures
    cells = [row.variant.label, ratio_name(row.ratio), percent(accuracy(row))]
    cells += [percent(figures["acc_pruned"]) if "acc_pruned" in figures else NOTHING]
    cells += [_each(row, "best_epoch"), _each(row, "epochs")]
    for key in ("params", "macs"):
        cells += [count(figures[key]), removed(figures, key)]
    seconds = [run.summary["seconds"] for run in row.runs if "seconds" in run.summary]
    cells.append(count(stat(seconds)) if seconds else NOTHING)
    return [*cells, _each(row, "precision"), _each(row, "seed")]


def _each(row: Row, key: str) -> str:
    """A figure of every run, or the one that all of them have."""
    found = [str(run.summary.get(key, NOTHING)) for run in row.runs]
    return found[0] if len(set(found)) == 1 else ", ".join(found)


# Switches.


def switches(judged: Sequence[Judged]) -> Grid | None:
    """Runs of one network and data set that go beyond the paper, beside those that do not.

    At the ratio `SEVERE`, or where the ratio is read off the scores; None where there are none.
    """
    at = [one for one in judged if one.run.summary.get("ratio") in (SEVERE, "auto")]
    groups: dict[tuple[str, str], dict[str, list[Judged]]] = {}
    for one in at:
        groups.setdefault(_start(one), {}).setdefault(one.off.label, []).append(one)
    rows = []
    for start, found in sorted(groups.items()):
        plain = _row(found.pop("", []))
        usual = plain.figures["acc_finetuned"].mean if plain else None
        if found and plain:
            rows.append([*start, "plain", *_switch_cells(plain, None)])
        for label, runs in sorted(found.items()):
            row = _row(runs)
            assert row is not None
            rows.append([*start, label, *_switch_cells(row, usual)])
    header = ["method", "epochs", "switch", f"accuracy at {SEVERE:g}", "difference to plain"]
    header += ["channels kept", "parameters", "MACs", "seed"]
    return Grid(header, rows, texts=3) if rows else None


def _start(one: Judged) -> tuple[str, str]:
    """What a switch is compared at: method, penalty and epochs."""
    penalty = [f"{key.rpartition('.')[2]}={value}" for key, value in one.off.penalty.items()]
    return ", ".join([one.run.summary["method"], *penalty]), _epochs(one.epochs)


def _switch_cells(row: Row, usual: float | None) -> list[str]:
    reached = row.figures["acc_finetuned"]
    apart = NOTHING if usual is None else f"{100 * (reached.mean - usual):+.2f}"
    sizes = [count(row.figures[key]) for key in ("channels", "params", "macs")]
    return [percent(reached), apart, *sizes, _each(row, "seed")]


# Modes.


def modes(distributions: Iterable[Distribution]) -> Grid | None:
    """Whether the importances of each dense network have two modes; None where none is at hand."""
    rows = []
    for one in distributions:
        for run, found in one.parts:
            valley = found.valley
            cells = [one.variant.label, str(run.summary.get("seed", NOTHING))]
            cells += [f"{len(found.values):,}", *(f"{found.below(limit):.1%}" for limit in LIMITS)]
            cells += [f"{valley.score:.2g}", f"{valley.depth:.3f}"] if valley else [NOTHING] * 2
            rows.append([*cells, "two modes" if valley and valley.divides else "none"])
    header = ["method", "seed", "channels", *(f"below {limit:g}" for limit in LIMITS)]
    header += ["valley at", "density, of the lower peak", "verdict"]
    return Grid(header, rows) if rows else None
