"""Tables as text: rows of cells, for the page and for Markdown alike.

The one rule of rounding: accuracies are percentages to two decimals, counts are whole numbers, and
what is removed is a percentage to one decimal, each rounded to the nearest.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rni_pl.report.collect import Run
from rni_pl.report.settings import Variant
from rni_pl.report.tables import Row, Stat, Table

ACCURACIES = {"acc_dense": "dense", "acc_pruned": "pruned", "acc_finetuned": "fine-tuned"}
NOTHING = "–"


@dataclass(frozen=True)
class Grid:
    """A table to be shown.

    Attributes:
        header: one text a column.
        rows: their cells.
        texts: how many columns, from the left, hold text; the others hold numbers.
        best: row and column of the cells to be highlighted.
    """

    header: list[str]
    rows: list[list[str]]
    texts: int = 1
    best: set[tuple[int, int]] = field(default_factory=set)

    @property
    def groups(self) -> set[int]:
        """Rows that begin another group of rows with the same first cell."""
        firsts = [row[0] for row in self.rows]
        if len(set(firsts)) == len(firsts):
            return set()
        return {i for i in range(1, len(firsts)) if firsts[i] != firsts[i - 1]}


def percent(stat: Stat) -> str:
    """``93.67``, or ``93.67 ± 0.12`` over several runs."""
    return f"{100 * stat.mean:.2f}" + ("" if stat.std is None else f" ± {100 * stat.std:.2f}")


def count(stat: Stat) -> str:
    """``417,762``, or ``417,762 ± 310`` over several runs that are not all alike."""
    return f"{stat.mean:,.0f}" + (f" ± {stat.std:,.0f}" if stat.std else "")


def ratio_name(ratio: float | str | None) -> str:
    """``0.5``, ``auto`` or ``dense``."""
    if ratio is None:
        return "dense"
    return ratio if isinstance(ratio, str) else f"{ratio:g}"


def by_ratio(table: Table) -> Grid:
    """Method by ratio: accuracy after fine-tuning, beside that of the dense network."""
    return _by_ratio(table, lambda row: percent(row.figures["acc_finetuned"]))


def by_ratio_with_macs(table: Table) -> Grid:
    """The same, and in brackets the millions of MACs that are left."""

    def cell(row: Row) -> str:
        return f"{percent(row.figures['acc_finetuned'])} ({row.figures['macs'].mean / 1e6:.1f})"

    return _by_ratio(table, cell)


def _by_ratio(table: Table, cell: Callable[[Row], str]) -> Grid:
    ratios = table.ratios()
    rows, means = [], []
    for variant in table.variants:
        dense = _dense_accuracy(table, variant)
        pruned = [table.row(variant, ratio) for ratio in ratios]
        cells = [NOTHING if row is None else cell(row) for row in pruned]
        rows.append([variant.label, percent(dense), *cells])
        reached = [None if row is None else row.figures["acc_finetuned"].mean for row in pruned]
        means.append([dense.mean, *reached])
    return Grid(["method", "dense", *map(ratio_name, ratios)], rows, best=_best(means))


def _dense_accuracy(table: Table, variant: Variant) -> Stat:
    """Of the training runs, or else of what pruning started from."""
    rows = [row for row in table.rows if row.variant == variant]
    first = min(rows, key=lambda row: (row.ratio is not None, -len(row.runs)))
    return first.figures["acc_dense"]


def _best(means: Sequence[Sequence[float | None]]) -> set[tuple[int, int]]:
    """The highest of each column of numbers, where there is something to compare."""
    cells = set()
    for column, values in enumerate(zip(*means, strict=True), start=1):
        known = [value for value in values if value is not None]
        if len(known) > 1:
            cells |= {(i, column) for i, value in enumerate(values) if value == max(known)}
    return cells


def details(table: Table) -> Grid:
    """Every row of a table: accuracies, parameters, MACs and what was removed of them."""
    sizes = ["parameters", "removed", "MACs", "removed"]
    header = ["method", "ratio", "runs", *ACCURACIES.values(), *sizes]
    return Grid(header, [_detail(row) for row in table.rows])


def _detail(row: Row) -> list[str]:
    figures = row.figures
    cells = [row.variant.label, ratio_name(row.ratio), str(len(row.runs))]
    cells += [percent(figures[key]) if key in figures else NOTHING for key in ACCURACIES]
    for key in ("params", "macs"):
        cells += [count(figures[key]), removed(figures, key)]
    return cells


def removed(figures: dict[str, Stat], key: str) -> str:
    """What pruning removed of a figure, in percent."""
    if f"{key}_dense" not in figures:
        return NOTHING
    return f"{100 * (1 - figures[key].mean / figures[f'{key}_dense'].mean):.1f} %"


def latencies(table: Table) -> Grid | None:
    """Latency where runs have measured it; None where none has."""
    measured = [key for row in table.rows for run in row.runs for key in run.latency]
    keys = list(dict.fromkeys(measured))
    if not keys:
        return None
    body = [
        [row.variant.label, ratio_name(row.ratio)] + [_latency(row, key) for key in keys]
        for row in table.rows
        if any(run.latency for run in row.runs)
    ]
    names = [key.removeprefix("latency.").replace(".", " ").replace("_", " ") for key in keys]
    return Grid(["method", "ratio", *names], body)


def _latency(row: Row, key: str) -> str:
    """A number over the runs that measured it; text if it is the same in all of them."""
    stat = row.figures.get(key)
    if stat is not None:
        return f"{stat.mean:.4g}" + (f" ± {stat.std:.2g}" if stat.std else "")
    texts = {str(run.latency[key]) for run in row.runs if key in run.latency}
    return texts.pop() if len(texts) == 1 else NOTHING


def kept_by_layer(table: Table) -> Grid:
    """Channels kept in each layer, the mean over runs: a column for each variant and ratio."""
    rows = [row for row in table.rows if row.ratio is not None]
    columns = [kept(row) for row in rows]
    layers = list(dict.fromkeys(layer for column in columns for layer in column))
    before = widths(table)
    header = [f"{row.variant.label}, {ratio_name(row.ratio)}" for row in rows]
    body = [
        [layer, *([f"{before[layer]}"] if before else [])]
        + [f"{round(column[layer], 1):g}" if layer in column else NOTHING for column in columns]
        for layer in layers
    ]
    return Grid(["layer", *(["dense"] if before else []), *header], body)


def kept(row: Row) -> dict[str, float]:
    """Norm layer -> number of channels kept, the mean over the runs of a row."""
    layers = [run.summary["kept"] for run in row.runs]
    shared = [name for name in layers[0] if all(name in one for one in layers)]
    return {name: sum(one[name] for one in layers) / len(layers) for name in shared}


def widths(table: Table) -> dict[str, int]:
    """Norm layer -> number of channels before pruning; empty where no one number is that of all."""
    found: dict[str, int] = {}
    pruned = [run for row in table.rows for run in row.runs if run.is_pruned]
    for run in pruned:
        own = run.summary.get("widths", {})
        if any(found.get(layer, width) != width for layer, width in own.items()):
            return {}
        found.update(own)
    layers = {name for run in pruned for name in run.summary["kept"]}
    return found if layers <= found.keys() else {}


def runs(found: Sequence[Run]) -> Grid:
    """Every run by name."""
    header = ["run", "data", "network", "method", "ratio", "seed", "accuracy", "best epoch", "of"]
    body = []
    for run in found:
        figures = run.summary
        accuracy = figures["acc_finetuned" if run.is_pruned else "test_acc"]
        cells = [run.name, *(figures[key] for key in ("dataset", "arch", "method"))]
        cells += [ratio_name(run.ratio), str(figures.get("seed", NOTHING))]
        cells += [percent(Stat(accuracy))]
        epochs = (figures.get(key) for key in ("best_epoch", "epochs"))
        cells += [NOTHING if figure is None else str(figure) for figure in epochs]
        body.append(cells)
    return Grid(header, body, texts=4)


def markdown(grid: Grid) -> str:
    """A grid as a Markdown table."""
    lines = [_line([markdown_text(cell) for cell in grid.header])]
    lines.append(_line(["---"] * grid.texts + ["---:"] * (len(grid.header) - grid.texts)))
    for i, row in enumerate(grid.rows):
        cells = [markdown_text(cell) for cell in row]
        lines.append(_line([f"**{c}**" if (i, j) in grid.best else c for j, c in enumerate(cells)]))
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def markdown_text(text: str) -> str:
    """A name as plain text in Markdown, on one line."""
    escaped = re.sub(r"([\\`*_\[\]<>|&#~$])", r"\\\1", text)
    return " ".join(escaped.split())
