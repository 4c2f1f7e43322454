"""Plots as SVG, in which a method has the same colour everywhere."""

import io
import json
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, PercentFormatter

from rni_pl.report.runs import DENSE
from rni_pl.report.tables import Task, averages

COLOURS = {"rni": "#1f6fb2", "l1": "#d9822b", "ucs": "#2e8b57", "polarization": "#8856a7"}
OTHERS = ("#c23b5a", "#7a6a53", "#0f9a9a", "#5f6b7a")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
SPAN = 0.1  # of an axis of accuracies, at least: two test images must not look like a peak
SMALLEST = 1e-6  # smaller importances share the first bin
STYLE: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "rni_pl", "text.parse_math": False, "font.size": 10,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "axes.axisbelow": True, "grid.color": "#e3e7eb", "legend.frameon": False,
}  # fmt: skip


@dataclass(frozen=True)
class Plot:
    """A drawing in SVG and what it shows."""

    title: str
    svg: str


def looks(task: Task) -> dict[str, dict[str, Any]]:
    """Colour of the method, and a dash for each of its variants."""
    found: dict[str, dict[str, Any]] = {}
    methods = dict(zip(task.runs["variant"], task.runs["method"], strict=True))
    others = [name for name in dict.fromkeys(methods.values()) if name not in COLOURS]
    for variant, method in methods.items():
        number = sum(methods[other] == method for other in found)
        colour = COLOURS.get(method) or OTHERS[others.index(method) % len(OTHERS)]
        found[variant] = {"color": colour, "linestyle": DASHES[number % len(DASHES)]}
    return found


def curves(task: Task) -> list[Plot]:
    """Accuracy against the share removed, MACs and, where it was measured, latency."""
    if not task.ratios:
        return []
    table = averages(task)
    across = {"share of the channels removed": ("channels", "channels_dense")}
    across["MACs of one image"] = ("macs", "macs_dense")
    if table["latency_ms"]["count"].any():
        across["median latency of a batch, ms"] = ("latency_ms", "latency_dense_ms")
    plots = [_curve(task, table, "accuracy", name, *keys) for name, keys in across.items()]
    first = next(iter(across.items()))
    return [*plots, _curve(task, table, "acc_pruned", first[0], *first[1])]


def _curve(
    task: Task, table: pd.DataFrame, figure: str, name: str, key: str, dense_key: str
) -> Plot:
    def paint(axes: Axes) -> None:
        for variant, look in looks(task).items():
            own = table.loc[variant]
            pruned = own[(own.index != DENSE) & (own[key]["count"] > 0)]
            if pruned.empty:
                continue
            dense = own.loc[[DENSE]] if DENSE in own.index else pruned.iloc[:1]
            places, start = pruned[key]["mean"], pruned[dense_key]["mean"].iloc[0]
            if key == "channels":
                places, start = 1 - places / pruned[dense_key]["mean"], 0.0
            line = pd.DataFrame({
                "x": [start, *places],
                "y": [dense["acc_dense"]["mean"].iloc[0], *pruned[figure]["mean"]],
                "e": [dense["acc_dense"]["std"].iloc[0], *pruned[figure]["std"]],
            }).sort_values("x")  # fmt: skip
            axes.errorbar(
                line["x"], line["y"], line["e"].fillna(0), label=variant, marker="o",
                markersize=4, elinewidth=1, capsize=2.5, **look,
            )  # fmt: skip
        if key == "macs":
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
            axes.xaxis.set_major_formatter(EngFormatter())
            axes.xaxis.set_minor_formatter(NullFormatter())
        _honest(axes)
        axes.set_xlabel(name)
        axes.set_ylabel("test accuracy")

    when = "right after removal" if figure == "acc_pruned" else "after fine-tuning"
    return _draw(f"Accuracy {when}, by {name}", paint)


def _honest(axes: Axes) -> None:
    """Accuracies on an axis that is never so short that chance looks like a difference."""
    low, high = axes.get_ylim()
    missing = max(SPAN - (high - low), 0)
    low, high = low - missing / 2, high + missing / 2
    axes.set_ylim(max(low, 0), min(high, 1.02))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))


def histograms(task: Task, importances: Mapping[str, np.ndarray]) -> Plot | None:
    """Importances of the dense networks of each variant, side by side on the same axes."""
    if not importances:
        return None
    with mpl.rc_context(STYLE):
        count = len(importances)
        columns = min(3, count)
        rows = -(-count // columns)
        figure = Figure(figsize=(3.1 * columns, 2.3 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        top = max(float(values.max()) for values in importances.values())
        edges = np.logspace(np.log10(SMALLEST), np.log10(max(top, 1.0)) + 1e-9, 61)
        for axes, (variant, values) in zip(grid.flat, importances.items(), strict=False):
            heights, _ = np.histogram(values.clip(SMALLEST, edges[-1]), edges)
            colour = looks(task)[variant]["color"]
            axes.stairs(heights / len(values), edges, fill=True, color=colour)
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(100))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.set_title(variant, fontsize=9, wrap=True)
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
        for axes in grid.flat[count:]:
            axes.set_visible(False)
        figure.supxlabel(f"importance of a channel (those below {SMALLEST:g} in the first bin)")
        figure.supylabel("share of the channels")
        return Plot("Importances of the dense networks", _svg(figure))


def shrinking(task: Task) -> list[Plot]:
    """MACs of each epoch, of networks that shrank while they were trained."""
    dense = task.runs[(task.runs["ratio"] == DENSE) & (task.runs["shrunk"] != "")]
    if dense.empty:
        return []

    def paint(axes: Axes) -> None:
        for variant, runs in dense.groupby("variant", sort=False):
            macs = pd.DataFrame([json.loads(text) for text in runs["shrunk"]]).mean()
            look = looks(task)[str(variant)]
            axes.plot(
                range(1, len(macs) + 1), macs, label=variant, marker="o", markersize=3, **look
            )
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(EngFormatter())
        axes.set_xlabel("epoch")
        axes.set_ylabel("MACs of one image")

    return [_draw("What an epoch costs while the network shrinks", paint)]


def kept_channels(task: Task) -> list[Plot]:
    """What each layer keeps, one plot for each ratio: a share of its channels, where known."""
    return [_kept(task, ratio) for ratio in task.ratios]


def _kept(task: Task, ratio: str) -> Plot:
    own = task.runs[task.runs["ratio"] == ratio]

    def paint(axes: Axes) -> None:
        layers: list[str] = []
        for variant, runs in own.groupby("variant", sort=False):
            kept = pd.DataFrame([json.loads(text or "{}") for text in runs["kept"]])
            wide = pd.DataFrame([json.loads(text or "{}") for text in runs["widths"]])
            share = (kept / wide if len(wide.columns) else kept).mean()
            layers = layers or list(share.index)
            look = looks(task)[str(variant)]
            axes.plot(range(len(share)), share, label=variant, marker="o", markersize=3, **look)
        step = -(-len(layers) // 9)
        axes.set_xticks(range(0, len(layers), step), layers[::step], rotation=40, ha="right")
        axes.tick_params("x", labelsize=8)
        axes.set_ylim(bottom=0)
        axes.set_ylabel("share of the channels kept")

    return _draw(f"Channels kept, ratio {ratio}", paint)


def _draw(title: str, paint: Callable[[Axes], None]) -> Plot:
    """Paint one pair of axes, with a legend below them."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 3.6), layout="constrained")
        axes = figure.add_subplot()
        paint(axes)
        handles, names = axes.get_legend_handles_labels()
        columns = max(1, min(4, 66 // max(map(len, names), default=66)))
        names = [textwrap.fill(name, 66, break_on_hyphens=False) for name in names]
        lines = sum(name.count("\n") + 1 for name in names) / columns
        figure.set_figheight(3.3 + 0.17 * lines)  # the axes keep their size
        figure.legend(handles, names, loc="outside lower center", ncols=columns, fontsize=8)
        return Plot(title, _svg(figure))


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()
