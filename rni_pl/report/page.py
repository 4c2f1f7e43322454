"""The report itself: one HTML page that needs no other file, Markdown, and CSV."""

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined

import rni_pl
from rni_pl.errors import CheckpointError, ConfigError
from rni_pl.norm.valley import find_valley
from rni_pl.report import plots, tables
from rni_pl.report.plots import Plot
from rni_pl.report.runs import DENSE, Problem, Runs
from rni_pl.report.tables import Task
from rni_pl.runs import checkpoint
from rni_pl.runs.files import BEST, write_whole

ROUNDING = (
    "Accuracies are on the test set, in percent; ± is the sample standard deviation over runs that "
    "differ in their seed only. runs.csv holds every run unrounded, and is read in place of the "
    "directories as well."
)


@dataclass(frozen=True)
class Section:
    """What the report says of one network on one data set: tables by title, plots, sentences."""

    title: str
    tables: dict[str, pd.DataFrame]
    plots: list[Plot]
    notes: list[str]


def sections(runs: Runs) -> Iterator[Section]:
    """One for each network on each data set; files that cannot be read become problems."""
    for task in tables.tasks(runs.table):
        importances = dict(_importances(task, runs))
        shown: dict[str, pd.DataFrame | None] = {}
        if task.ratios:
            shown["Test accuracy after fine-tuning, by ratio"] = tables.by_ratio(task)
        shown["All figures"] = tables.details(task)
        shown["Latency"] = tables.latencies(task)
        shown["Channels kept in each layer"] = tables.kept_by_layer(task)
        histogram = plots.histograms(task, importances)
        drawn = [*plots.curves(task), *([histogram] if histogram else [])]
        yield Section(
            task.title,
            {title: table for title, table in shown.items() if table is not None},
            [*drawn, *plots.shrinking(task), *plots.kept_channels(task)],
            [f"{variant}: {modes(values)}" for variant, values in importances.items()],
        )


def _importances(task: Task, runs: Runs) -> Iterator[tuple[str, np.ndarray]]:
    """Importances of the channels of each variant's dense networks, whose checkpoints are there."""
    dense = task.runs[task.runs["ratio"] == DENSE]
    for variant, own in dense.groupby("variant", sort=False):
        parts = []
        for place in own.index:
            path = runs.paths[place]
            if path is None or not (path / BEST).is_file():
                continue
            try:
                sizes = checkpoint.read_scale_sizes(path)
            except (CheckpointError, ConfigError) as error:
                problem = Problem(str(own.loc[place, "run"]), f"no histogram: {error}")
                runs.problems.append(problem)
                continue
            parts.append(torch.cat(list(sizes.values())).double().numpy())
        if parts:
            yield str(variant), np.concatenate(parts)


def modes(importances: np.ndarray) -> str:
    """Whether importances, shape (channels,), have two modes, in words."""
    valley = find_valley(torch.from_numpy(importances))
    if valley is None:
        return "no valley between two modes"
    depth = f"density {valley.depth:.3f} of the lower peak"
    if valley.divides:
        return f"two modes, valley at {valley.score:.2g} ({depth})"
    return f"no valley between two modes (deepest dip: {depth})"


def write(runs: Runs, folder: Path) -> list[Path]:
    """Write `report.html`, `report.md` and `runs.csv`; the paths of all."""
    found = list(sections(runs))
    texts = {
        "report.html": html(runs, found),
        "report.md": markdown(runs, found),
        "runs.csv": csv(runs.table),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_whole(folder / name, text)
    return [folder / name for name in texts]


def csv(table: pd.DataFrame) -> str:
    """Every run; no text that a spreadsheet would take for a formula."""
    texts = table.select_dtypes(exclude="number")
    safe = table.copy()
    safe[texts.columns] = texts.map(
        lambda v: f"'{v}" if str(v).startswith(("=", "+", "-", "@")) else v
    )
    return safe.to_csv(index=False, lineterminator="\n")


def html(runs: Runs, found: list[Section]) -> str:
    """One page with everything in it."""
    environment = Environment(
        loader=PackageLoader("rni_pl.report", "."), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["data_uri"] = _data_uri
    environment.filters["table"] = _html_table
    return environment.get_template("page.html").render(
        sections=found, runs=tables.every_run(runs.table), problems=runs.problems,
        rounding=ROUNDING, version=rni_pl.__version__,
    )  # fmt: skip


def _data_uri(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def _html_table(table: pd.DataFrame) -> str:
    return table.to_html(index=False, border=0, na_rep=tables.NOTHING, float_format=_short)


def _short(number: float) -> str:
    return f"{round(number, 1):g}"


def markdown(runs: Runs, found: list[Section]) -> str:
    """The tables of the report."""
    parts = ["# Pruning report", ROUNDING]
    if runs.problems:
        parts += ["## Problems", "\n".join(f"- {p.run}: {p.reason}" for p in runs.problems)]
    for section in found:
        parts.append(f"## {section.title}")
        for title, table in section.tables.items():
            parts += [f"### {title}", tables.markdown(table)]
        if section.notes:
            notes = "\n".join(f"- {note}" for note in section.notes)
            parts += ["### Importances of the dense networks", notes]
    parts += ["## Runs", tables.markdown(tables.every_run(runs.table))]
    return "\n\n".join(part.strip() for part in parts) + "\n"
