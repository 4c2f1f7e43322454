"""Plots as SVG, with the same colour for a method in all of them.

By matplotlib, since its SVG is text that needs no script in the page: small, offline, printable.
"""

import io
import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from rni_pl.report.grids import kept, ratio_name, widths
from rni_pl.report.importances import LIMITS, SMALLEST, Distribution, shared_edges, shares
from rni_pl.report.settings import Variant
from rni_pl.report.tables import COLOURS, Row, Stat, Table

OTHERS = ("#c23b5a", "#7a6a53", "#0f9a9a", "#5f6b7a")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P")
INK, EDGE, FAINT = "#2b3138", "#9aa3ad", "#e3e7eb"
LAYER_NAMES = 9  # on an axis, at most
LINE = 50  # characters of a legend that fit the width

STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "rni_pl",
    "text.parse_math": False,  # names may hold dollar signs
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.edgecolor": EDGE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
}


@dataclass(frozen=True)
class Plot:
    """A drawing in SVG, what it shows, and what there is to say about it."""

    title: str
    svg: str
    note: str = ""


@dataclass(frozen=True)
class Look:
    """How a variant is drawn: its method's colour, and a dash and a marker of its own."""

    colour: str
    dash: Any
    marker: str


def method_colours(tables: Sequence[Table]) -> dict[str, str]:
    """One colour for each method in any of the tables."""
    methods = dict.fromkeys(row.variant.method for table in tables for row in table.rows)
    others = [method for method in methods if method not in COLOURS]
    return {**COLOURS, **{method: OTHERS[i % len(OTHERS)] for i, method in enumerate(others)}}


def looks(table: Table, colours: dict[str, str]) -> dict[Variant, Look]:
    """How each variant of a table is drawn."""
    found: dict[Variant, Look] = {}
    for variant in table.variants:
        index = sum(other.method == variant.method for other in found)
        dash, marker = DASHES[index % len(DASHES)], MARKERS[index % len(MARKERS)]
        found[variant] = Look(colours[variant.method], dash, marker)
    return found


@dataclass(frozen=True)
class Across:
    """What accuracy is drawn against: where a pruned row lies, and the network it came from."""

    name: str
    pruned: Callable[[Row], float]
    dense: Callable[[Row], float]


def _removed(row: Row) -> float:
    """The ratio; where it is no share of channels, the share of them that was removed."""
    if isinstance(row.ratio, str):
        return 1 - row.figures["channels"].mean / row.figures["channels_dense"].mean
    return float(row.ratio or 0)


RATIO = Across("ratio (share removed)", _removed, lambda row: 0.0)
MACS = Across(
    "MACs of one image",
    lambda row: row.figures["macs"].mean,
    lambda row: row.figures["macs_dense"].mean,
)


def curves(table: Table, colours: dict[str, str]) -> list[Plot]:
    """Accuracy against ratio and against MACs, from the dense network on."""
    if not table.ratios():
        return []
    return [
        _curve(table, colours, "After fine-tuning, by ratio", "acc_finetuned", RATIO),
        _curve(table, colours, "After fine-tuning, by MACs", "acc_finetuned", MACS),
        _curve(table, colours, "Right after removal, by ratio", "acc_pruned", RATIO),
    ]


def points(table: Table, variant: Variant, figure: str, across: Across) -> list[tuple[float, Stat]]:
    """Place and accuracy of the dense network and of each pruned one; empty if none is pruned."""
    rows = [row for row in table.rows if row.variant == variant and row.ratio is not None]
    if not rows:
        return []
    most = max(rows, key=lambda row: len(row.runs))
    found = [(across.pruned(row), row.figures[figure]) for row in rows]
    found.append((across.dense(most), most.figures["acc_dense"]))
    return sorted(found, key=lambda point: point[0])


def _curve(table: Table, colours: dict[str, str], title: str, figure: str, across: Across) -> Plot:
    def paint(axes: Axes) -> None:
        for variant, look in looks(table, colours).items():
            line = points(table, variant, figure, across)
            if line:
                places, stats = zip(*line, strict=True)
                axes.errorbar(
                    places, [y.mean for y in stats], [y.std or 0 for y in stats],
                    color=look.colour, linestyle=look.dash, marker=look.marker, elinewidth=1,
                    capsize=2.5, label=variant.label,
                )  # fmt: skip
        if across is MACS:
            axes.set_xscale("log")
            low, high = axes.get_xlim()
            wide = high > 10 * low
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)) if wide else MaxNLocator(4))
            axes.xaxis.set_major_formatter(EngFormatter())
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
        axes.set_xlabel(across.name)
        axes.set_ylabel("test accuracy")

    return _draw(title, paint, legend=True)


def histograms(distributions: Sequence[Distribution], colours: dict[str, str]) -> list[Plot]:
    """Importances of each variant, on the same axes, so that they can be laid side by side."""
    if not distributions:
        return []
    edges = shared_edges(distributions)
    heights = [shares(one, edges) for one in distributions]
    top = 1.08 * max(float(height.max()) for height in heights)
    return [
        _histogram(one, height, edges, top, colours[one.variant.method])
        for one, height in zip(distributions, heights, strict=True)
    ]


def side_by_side(
    distributions: Sequence[Distribution], colours: dict[str, str], title: str
) -> Plot:
    """All histograms in one drawing, two in a row, on the same axes."""
    edges = shared_edges(distributions)
    heights = [shares(one, edges) for one in distributions]
    top = 1.08 * max(float(height.max()) for height in heights)
    columns = min(2, len(distributions))
    rows = math.ceil(len(distributions) / columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.7 * columns, 3.5 * rows), layout="constrained")
        for i, (one, height) in enumerate(zip(distributions, heights, strict=True)):
            axes = figure.add_subplot(rows, columns, i + 1)
            _paint_histogram(axes, height, edges, top, colours[one.variant.method])
            axes.set_title(one.variant.label, fontsize=11)
        svg = _svg(figure)
    return Plot(
        title, svg, "; ".join(f"{d.variant.label}: {d.pooled.modes}" for d in distributions)
    )


def _histogram(
    one: Distribution, heights: np.ndarray, edges: np.ndarray, top: float, colour: str
) -> Plot:
    def paint(axes: Axes) -> None:
        _paint_histogram(axes, heights, edges, top, colour)

    parts = [f"{one.pooled.below(limit):.1%} below {limit:g}" for limit in LIMITS]
    return _draw(one.variant.label, paint, note="; ".join([*parts, one.pooled.modes]))


def _paint_histogram(
    axes: Axes, heights: np.ndarray, edges: np.ndarray, top: float, colour: str
) -> None:
    axes.stairs(heights, edges, fill=True, color=colour, alpha=0.85)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(10))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(_size)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0, top)
    for limit in LIMITS:
        axes.axvline(limit, color=EDGE, linewidth=1, linestyle=(0, (3, 2)))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    axes.set_xlabel("importance (effective scale)")
    axes.set_ylabel("share of channels")


def _size(size: float, _: float) -> str:
    """A size on an axis; that of the first bin stands for all that are smaller."""
    return f"≤{size:g}" if size < 1.01 * SMALLEST else f"{size:g}"


def kept_channels(table: Table, colours: dict[str, str]) -> list[Plot]:
    """What each layer keeps, one plot a ratio: a share of its channels where widths are known."""
    return [_kept(table, colours, ratio) for ratio in table.ratios()]


def _kept(table: Table, colours: dict[str, str], ratio: float | str) -> Plot:
    rows = [row for row in table.rows if row.ratio == ratio]
    layers = list(dict.fromkeys(layer for row in rows for layer in kept(row)))
    before = widths(table)

    def paint(axes: Axes) -> None:
        places = np.arange(len(layers))
        for row in rows:
            look, counts = looks(table, colours)[row.variant], kept(row)
            heights = [counts.get(layer, math.nan) / before.get(layer, 1) for layer in layers]
            axes.plot(
                places, heights, color=look.colour, linestyle=look.dash, marker=look.marker,
                markersize=3.5, linewidth=1.3, label=row.variant.label,
            )  # fmt: skip
        if before:
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
        step = math.ceil(len(layers) / LAYER_NAMES)
        axes.set_xticks(places[::step], layers[::step], rotation=40, ha="right", fontsize=8)
        axes.set_xlim(-0.6, len(layers) - 0.4)
        axes.set_ylim(bottom=0)
        axes.set_ylabel("channels kept")

    return _draw(f"Ratio {ratio_name(ratio)}", paint, legend=True)


def _draw(title: str, paint: Callable[[Axes], None], legend: bool = False, note: str = "") -> Plot:
    """Paint one pair of axes, with a legend below them."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.7, 3.5), layout="constrained")
        axes = figure.add_subplot()
        paint(axes)
        if legend:
            handles, labels = axes.get_legend_handles_labels()
            columns = max(1, min(len(labels), 42 // max(map(len, labels), default=42)))
            labels = [textwrap.fill(label, LINE, break_on_hyphens=False) for label in labels]
            lines = sum(label.count("\n") + 1 for label in labels) / columns
            figure.set_figheight(3.5 + 0.17 * max(0, lines - 2))  # the plot keeps its size
            figure.legend(
                handles, labels, loc="outside lower center", ncols=columns, fontsize=10,
                handlelength=3.5,  # as long as a dash is, to be told apart
            )  # fmt: skip
        svg = _svg(figure)
    return Plot(title, svg, note)


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()
