"""From runs to rows: means and standard deviations over runs that differ in their seed alone."""

import math
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rni_pl.report.budgets import Budget
from rni_pl.report.collect import Problem, Run
from rni_pl.report.settings import Variant, variants

# Methods with the colours they are drawn in; these come first, others by name.
COLOURS = {"rni": "#1f6fb2", "l1": "#d9731a", "ucs": "#3a8f4d", "polarization": "#8b5cb8"}
OF_DENSE = {"acc_dense": "test_acc", "params": "params", "macs": "macs"}
OF_PRUNED = {
    **{key: key for key in ("acc_dense", "acc_pruned", "acc_finetuned")},
    **{key: f"{key}_pruned" for key in ("params", "macs", "channels")},
    **{f"{key}_dense": f"{key}_dense" for key in ("params", "macs", "channels")},
}


@dataclass(frozen=True)
class Stat:
    """Mean of one figure over runs, and its sample standard deviation; None for a single run."""

    mean: float
    std: float | None = None


@dataclass(frozen=True)
class Row:
    """Runs that differ in their seed alone.

    Attributes:
        variant: what they were trained and pruned with.
        ratio: `Run.ratio` of each.
        runs: the runs.
        figures: figure -> mean and deviation: ``acc_dense``, ``acc_pruned`` and ``acc_finetuned``
            (fractions), ``params``, ``macs`` and ``channels``, the same with ``_dense`` where
            pruned, and ``latency.*`` over those runs that measured it.
    """

    variant: Variant
    ratio: float | str | None
    runs: tuple[Run, ...]
    figures: dict[str, Stat]

    @property
    def seeds(self) -> list[Any]:
        """The runs' seeds, as far as they say."""
        return [run.summary["seed"] for run in self.runs if "seed" in run.summary]


@dataclass(frozen=True)
class Table:
    """All rows of one data set and network, by method, variant and ratio.

    Attributes:
        dataset: name of the data set.
        arch: name of the network.
        rows: the rows.
        budget: the one that all rows have; None: rows of any.
    """

    dataset: str
    arch: str
    rows: tuple[Row, ...]
    budget: Budget | None = None

    @property
    def variants(self) -> list[Variant]:
        """Each once, in the order of the rows."""
        return list(dict.fromkeys(row.variant for row in self.rows))

    def ratios(self) -> list[float | str]:
        """The ratios that networks were pruned at, from low to high."""
        found = {row.ratio for row in self.rows if row.ratio is not None}
        return sorted(found, key=_ratio_order)

    def row(self, variant: Variant, ratio: float | str | None) -> Row | None:
        """The row of one variant and ratio."""
        rows = [row for row in self.rows if row.variant == variant and row.ratio == ratio]
        return rows[0] if rows else None


def tabulate(runs: Iterable[Run]) -> list[Table]:
    """One table for each data set and network, in alphabetical order."""
    by_task: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        by_task.setdefault((run.summary["dataset"], run.summary["arch"]), []).append(run)
    return [table_of(group, variants(group)) for _, group in sorted(by_task.items())]


def repeats(tables: Iterable[Table]) -> list[Problem]:
    """Runs that count as two seeds although their seeds are the same."""
    found = []
    for row in (row for table in tables for row in table.rows):
        first: dict[str, Run] = {}
        for run in row.runs:
            other = first.setdefault(_identity(run), run)
            if other is not run:
                reason = f"has the settings and the seed of {other.name}; both count"
                found.append(Problem(run.name, reason))
    return found


def table_of(runs: Sequence[Run], told: Sequence[Variant], budget: Budget | None = None) -> Table:
    """The table of runs of one data set and network, at least one, each with its variant."""
    groups: dict[tuple[Variant, float | str | None], list[Run]] = {}
    for run, variant in zip(runs, told, strict=True):
        groups.setdefault((variant, run.ratio), []).append(run)
    rows = [
        Row(variant, ratio, tuple(group), _figures(group))
        for (variant, ratio), group in groups.items()
    ]
    task = runs[0].summary
    return Table(task["dataset"], task["arch"], tuple(sorted(rows, key=_row_order)), budget)


def _figures(runs: Sequence[Run]) -> dict[str, Stat]:
    names = OF_PRUNED if runs[0].is_pruned else OF_DENSE
    figures = {name: stat([run.summary[key] for run in runs]) for name, key in names.items()}
    latencies = [run.latency for run in runs]
    for key in dict.fromkeys(key for one in latencies for key in one):
        values = [one[key] for one in latencies if _is_number(one.get(key))]
        if values:
            figures[key] = stat(values)
    return figures


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < 1e300  # NaN and infinity are not


def stat(values: Sequence[float]) -> Stat:
    """Mean and sample standard deviation; a single value as it is."""
    if len(values) == 1:
        return Stat(values[0])
    return Stat(statistics.fmean(values), statistics.stdev(values))


def _identity(run: Run) -> str:
    return str((run.summary.get("seed"), (run.settings or {}).get("checkpoint")))


def _ratio_order(ratio: float | str | None) -> tuple[float, str]:
    """Dense networks, shares of the channels, and then what else was to be removed."""
    if ratio is None:
        return -1.0, ""
    return (2.0, ratio) if isinstance(ratio, str) else (ratio, "")


def _row_order(row: Row) -> tuple[Any, ...]:
    method = row.variant.method
    known = [*COLOURS, method].index(method)
    return known, method, _by_size(row.variant.label), _ratio_order(row.ratio)


def _by_size(label: str) -> tuple[Any, ...]:
    """Labels in order, their numbers by size: ``reg_weight=1e-05`` before ``0.0002``."""
    parts = re.split(r"(?<==)([^,]*)", label)
    return tuple(
        (0, float(part), "") if _is_text_of_number(part) else (1, 0.0, part) for part in parts
    )


def _is_text_of_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
