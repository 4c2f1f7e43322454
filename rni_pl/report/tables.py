"""Tables over runs: means over seeds, and text for pages.

Accuracies are percentages to two decimals, counts whole numbers; ± is the sample standard deviation
over runs that differ in their seed only.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from rni_pl.report.runs import DENSE

ACCURACIES = {"acc_dense": "dense", "acc_pruned": "right after removal", "accuracy": "fine-tuned"}
NOTHING = "–"


@dataclass(frozen=True)
class Task:
    """The runs of one network on one data set."""

    dataset: str
    arch: str
    runs: pd.DataFrame

    @property
    def title(self) -> str:
        """Network and data set."""
        return f"{self.arch} on {self.dataset}"

    @property
    def ratios(self) -> list[str]:
        """Those of pruned runs, by size; named ones last."""
        return sorted(set(self.runs["ratio"]) - {DENSE}, key=_size_of)

    @property
    def variants(self) -> list[str]:
        """In the order in which they were found."""
        return list(dict.fromkeys(self.runs["variant"]))


def _size_of(ratio: str) -> tuple[str, float, str]:
    share, _, of = ratio.partition(" of ")
    try:
        return of, float(share), ratio
    except ValueError:  # auto
        return "~", 0.0, ratio


def tasks(runs: pd.DataFrame) -> Iterator[Task]:
    """The runs of each network on each data set."""
    for (dataset, arch), own in runs.groupby(["dataset", "arch"], sort=False):
        yield Task(str(dataset), str(arch), own)


def averages(task: Task) -> pd.DataFrame:
    """Mean, standard deviation and number of runs of every figure, by variant and ratio.

    Columns are pairs: a figure, and ``mean``, ``std`` or ``count``.
    """
    figures = task.runs.select_dtypes("number").columns.drop("seed")
    runs = task.runs.assign(
        method=pd.Categorical(task.runs["variant"], task.variants),
        ratio=pd.Categorical(task.runs["ratio"], [DENSE, *task.ratios]),
    )
    found = runs.groupby(["method", "ratio"], observed=True, sort=True)[list(figures)]
    return found.agg(["mean", "std", "count"])


def by_ratio(task: Task) -> pd.DataFrame:
    """Method by ratio: accuracy after fine-tuning, beside that of the dense network."""
    return _by_ratio(task, ["accuracy"])


def by_ratio_with_macs(task: Task) -> pd.DataFrame:
    """The same, and in brackets the millions of MACs that are left."""
    return _by_ratio(task, ["accuracy", "macs"])


def _by_ratio(task: Task, figures: list[str]) -> pd.DataFrame:
    table, rows = averages(task), []
    for variant in task.variants:
        own = table.loc[variant]
        dense = own["acc_dense"].sort_values("count", ascending=False).iloc[0]
        if DENSE in own.index:
            dense = own.loc[DENSE, "acc_dense"]
        row = {"method": variant, DENSE: percent(dense)}
        for ratio in task.ratios:
            cell = NOTHING
            if ratio in own.index:
                cell = percent(own.loc[ratio, "accuracy"])
                if "macs" in figures:
                    cell += f" ({own.loc[ratio, ('macs', 'mean')] / 1e6:.1f})"
            row[ratio] = cell
        rows.append(row)
    return pd.DataFrame(rows)


def details(task: Task) -> pd.DataFrame:
    """A row for each method and ratio: accuracies, parameters, MACs and what was removed."""
    rows = []
    for (variant, ratio), own in averages(task).iterrows():
        row = {"method": variant, "ratio": ratio, "runs": int(own["accuracy", "count"])}
        for key, title in ACCURACIES.items():
            shown = own[key]["count"] and not (ratio == DENSE and key != "acc_dense")
            row[title] = percent(own[key]) if shown else NOTHING
        for key, title in (("params", "parameters"), ("macs", "MACs")):
            row[title] = count(own[key])
            share = 1 - own[key]["mean"] / own[f"{key}_dense"]["mean"]
            row[f"{title} removed"] = NOTHING if ratio == DENSE else f"{share:.1%}"
        rows.append(row)
    return pd.DataFrame(rows)


def latencies(task: Task) -> pd.DataFrame | None:
    """Median milliseconds of a batch before and after; None where no run has measured them."""
    timed = averages(task)["latency_ms"]
    if not timed["count"].any():
        return None
    table, rows = averages(task), []
    for (variant, ratio), own in table[timed["count"] > 0].iterrows():
        before, after = own["latency_dense_ms"]["mean"], own["latency_ms"]["mean"]
        rows.append({
            "method": variant, "ratio": ratio, "dense, ms": f"{before:.4g}",
            "pruned, ms": f"{after:.4g}", "speed-up": f"{before / after:.2f}",
        })  # fmt: skip
    return pd.DataFrame(rows)


def kept_by_layer(task: Task) -> pd.DataFrame | None:
    """Channels kept in each layer, the mean over seeds; None where nothing was pruned."""
    pruned = task.runs[task.runs["ratio"] != DENSE]
    if pruned.empty:
        return None
    columns: dict[str, pd.Series] = {}
    widths = pd.concat([pd.Series(json.loads(text or "{}")) for text in pruned["widths"]])
    if not widths.empty:
        columns[DENSE] = widths.groupby(level=0, sort=False).first()
    for (variant, ratio), own in pruned.groupby(["variant", "ratio"], sort=False):
        layers = pd.DataFrame([json.loads(text or "{}") for text in own["kept"]])
        columns[f"{variant}, {ratio}"] = layers.mean()
    table = pd.DataFrame(columns)
    first = json.loads(pruned["kept"].iloc[0] or "{}")
    order = [*first, *[layer for layer in table.index if layer not in first]]
    return table.loc[order].rename_axis("layer").reset_index()


def every_run(runs: pd.DataFrame) -> pd.DataFrame:
    """Every run by name."""
    table = runs[["run", "dataset", "arch", "method", "ratio"]].copy()
    for key in ("seed", "best_epoch", "epochs"):
        table[key.replace("_", " ")] = runs[key].astype("Int64")
    table["accuracy"] = [f"{100 * value:.2f}" for value in runs["accuracy"]]
    return table


def percent(figure: pd.Series) -> str:
    """``93.67``, or ``93.67 ± 0.12`` over several runs."""
    spread = f" ± {100 * figure['std']:.2f}" if figure["count"] > 1 else ""
    return f"{100 * figure['mean']:.2f}{spread}"


def count(figure: pd.Series) -> str:
    """``417,762``, or ``417,762 ± 310`` over several runs that are not all alike."""
    spread = f" ± {figure['std']:,.0f}" if figure["count"] > 1 and figure["std"] else ""
    return f"{figure['mean']:,.0f}{spread}"


def markdown(table: pd.DataFrame) -> str:
    """A table in Markdown, numbers to the right."""
    shown = table.map(_cell)
    shown.columns = [_cell(name) for name in shown.columns]
    align = ["left", *["right"] * (len(shown.columns) - 1)]
    return shown.to_markdown(index=False, disable_numparse=True, colalign=align) + "\n"


def _cell(value: object) -> str:
    if pd.isna(value):
        return NOTHING
    if isinstance(value, float):
        return f"{round(value, 1):g}"
    return " ".join(str(value).split()).replace("|", "\\|")
