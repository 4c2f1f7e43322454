"""Tables that compare: at one budget, with and without a switch, by modes of the importances."""

from collections.abc import Iterable, Sequence

from rni_pl.errors import ConfigError
from rni_pl.report.budgets import distinct
from rni_pl.report.collect import Run
from rni_pl.report.departures import Judged
from rni_pl.report.grids import NOTHING, Grid, count, percent, ratio_name, removed
from rni_pl.report.importances import LIMITS, Distribution
from rni_pl.report.settings import variants
from rni_pl.report.tables import Row, Stat, Table, stat, table_of, tabulate

SEVERE = 0.9  # the share of channels at which switches are compared
EPOCHS = "trainer.max_epochs"


def task_of(run: Run) -> tuple[str, str]:
    """Data set and network."""
    return run.summary["dataset"], run.summary["arch"]


def row_of(runs: Sequence[Judged]) -> Row | None:
    """Runs of one method and ratio as one row; None for no runs.

    Raises:
        ConfigError: they differ in more than their seed.
    """
    if not runs:
        return None
    trained = {one.trained.path: one.trained for one in runs}  # says what led to each
    (table,) = tabulate({**trained, **{one.run.path: one.run for one in runs}}.values())
    rows = [row for row in table.rows if row.ratio == runs[0].run.ratio]
    if len(rows) > 1:
        labels = " and ".join(f"{row.runs[0].name} ({row.variant.label})" for row in rows)
        raise ConfigError(f"runs of one cell differ in more than their seed: {labels}")
    return rows[0]


def accuracy(row: Row) -> Stat:
    """What a row's runs ended with."""
    return row.figures["acc_dense" if row.ratio is None else "acc_finetuned"]


# One budget.


def at_budget(judged: Iterable[Judged]) -> list[Table]:
    """Tables of the runs without a switch, whatever the weight of their penalty.

    One for each budget of a network and data set; dense networks are in each that they led to.
    """
    return _by_budget(one for one in judged if not one.off.are_switches)


def dense_networks(judged: Iterable[Judged]) -> list[Table]:
    """The same of the dense networks alone, by the epochs of their training."""
    plain = [one for one in judged if not one.off.are_switches]
    return _by_budget(one for one in plain if not one.run.is_pruned)


def _by_budget(judged: Iterable[Judged]) -> list[Table]:
    by_task: dict[tuple[str, str], list[Judged]] = {}
    for one in judged:
        by_task.setdefault(task_of(one.run), []).append(one)
    return [table for _, mine in sorted(by_task.items()) for table in _tables_of_task(mine)]


def _tables_of_task(judged: Sequence[Judged]) -> list[Table]:
    told = variants([one.run for one in judged], without=[EPOCHS])  # alike in all tables
    tables = []
    for budget in distinct(one.budget for one in judged):
        chosen = [
            (one.run, variant)
            for one, variant in zip(judged, told, strict=True)
            if budget.holds(one.budget)
        ]
        runs, names = zip(*chosen, strict=True)
        tables.append(table_of(runs, names, budget))
    return tables


def costs(table: Table) -> Grid:
    """Every row of a table with what it took: epochs, time, precision and seeds."""
    header = ["method", "ratio", "accuracy", "after removal", "best epoch (from 0)", "epochs"]
    header += ["parameters", "removed", "MACs", "removed", "seconds", "precision", "seed"]
    return Grid(header, [_costs_of(row) for row in table.rows])


def _costs_of(row: Row) -> list[str]:
    figures = row.figures
    cells = [row.variant.label, ratio_name(row.ratio), percent(accuracy(row))]
    cells += [percent(figures["acc_pruned"]) if "acc_pruned" in figures else NOTHING]
    cells += [_each(row, "best_epoch"), _each(row, "epochs")]
    for key in ("params", "macs"):
        cells += [count(figures[key]), removed(figures, key)]
    return [*cells, _seconds(row), _each(row, "precision"), _each(row, "seed")]


def _seconds(row: Row) -> str:
    seconds = [run.summary["seconds"] for run in row.runs if "seconds" in run.summary]
    return count(stat(seconds)) if seconds else NOTHING


def _each(row: Row, key: str) -> str:
    """A figure of every run, or the one that all of them have."""
    figures = [run.summary.get(key) for run in row.runs]
    found = [NOTHING if figure is None else str(figure) for figure in figures]
    return found[0] if len(set(found)) == 1 else ", ".join(found)


# Switches.


def switches(judged: Sequence[Judged]) -> Grid | None:
    """Runs of one network and data set that go beyond the paper, beside those that do not.

    At the ratio `SEVERE`, or where the ratio is read off the scores; None where there are none.
    Differences are to the plain runs of the same seeds.
    """
    at = [one for one in judged if one.run.ratio in (SEVERE, "auto")]
    groups: dict[tuple[str, str], dict[str, list[Judged]]] = {}
    for one in at:
        groups.setdefault(_start(one), {}).setdefault(one.off.label, []).append(one)
    rows = []
    for start, found in sorted(groups.items()):
        usual = found.pop("", [])
        plain = row_of(usual)
        if found and plain:
            rows.append([*start, "plain", *_switch_cells(plain, None)])
        for label, runs in sorted(found.items()):
            row = row_of(runs)
            assert row is not None
            rows.append([*start, label, *_switch_cells(row, _of_same_seeds(runs, usual))])
    header = ["method", "epochs", "switch", f"accuracy at {SEVERE:g} or auto"]
    header += ["difference to plain, same seeds"]
    header += ["channels kept", "parameters", "MACs", "seconds", "precision", "seed"]
    return Grid(header, rows, texts=3) if rows else None


def _start(one: Judged) -> tuple[str, str]:
    """What a switch is compared at: method, penalty and epochs."""
    penalty = [f"{key.rpartition('.')[2]}={value}" for key, value in one.off.penalty.items()]
    return ", ".join([one.run.summary["method"], *penalty]), str(one.budget)


def _of_same_seeds(runs: Sequence[Judged], usual: Sequence[Judged]) -> Row | None:
    """The row of the plain runs with the seeds of `runs`; None where one is missing."""
    seeds = {one.run.summary.get("seed") for one in runs}
    alike = [one for one in usual if one.run.summary.get("seed") in seeds]
    return row_of(alike) if seeds == {one.run.summary.get("seed") for one in alike} else None


def _switch_cells(row: Row, plain: Row | None) -> list[str]:
    reached = row.figures["acc_finetuned"]
    apart = NOTHING
    if plain and row.ratio == SEVERE:  # auto keeps another number of channels
        apart = f"{100 * (reached.mean - plain.figures['acc_finetuned'].mean):+.2f}"
    sizes = [count(row.figures[key]) for key in ("channels", "params", "macs")]
    how = [_seconds(row), _each(row, "precision"), _each(row, "seed")]
    return [percent(reached), apart, *sizes, *how]


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
