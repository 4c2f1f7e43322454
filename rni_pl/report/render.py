"""The report itself: one page that needs no other file, Markdown, and CSV."""

import base64
import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

import rni_pl
from rni_pl.errors import ConfigError
from rni_pl.report import comparison, grids, papers, plots
from rni_pl.report.collect import Found, Problem, Run, flatten
from rni_pl.report.comparison import task_of
from rni_pl.report.departures import judge
from rni_pl.report.grids import Grid
from rni_pl.report.importances import read_distributions
from rni_pl.report.papers import Captioned
from rni_pl.report.plots import Plot
from rni_pl.report.published import beside
from rni_pl.report.tables import Table, repeats, tabulate
from rni_pl.runs.files import write_whole

ROUNDING = (
    "Accuracies are on the test set, in percent, rounded to two decimals; parameters and MACs are "
    "whole numbers; ± is the sample standard deviation over runs that differ in their seed alone. "
    "results.csv and runs.csv hold the same figures unrounded."
)

PUBLISHED = "Beside published figures"


@dataclass(frozen=True)
class Section:
    """What the report says of one data set and network."""

    title: str
    colours: dict[str, str]
    by_ratio: Grid | None
    details: Grid
    latencies: Grid | None
    kept: Grid | None
    modes: Grid | None
    curves: list[Plot]
    histograms: list[Plot]
    kept_plots: list[Plot]


@dataclass(frozen=True)
class Report:
    """Everything that is shown, before it becomes a page."""

    published: Captioned | None
    sections: list[Section]
    runs: Grid
    problems: list[Problem]
    tables: list[Table]
    found: list[Run]


def make_report(found: Found, track: Callable[[Iterable], Iterable] = iter) -> Report:
    """Tables and plots of all runs; `track` may show the progress of reading checkpoints."""
    tables = tabulate(found.runs)
    problems = [*found.problems, *repeats(tables)]
    colours = plots.method_colours(tables)
    sections = [_section(table, colours, problems, track) for table in tables]
    published = _beside_published(found.runs, problems)
    return Report(published, sections, grids.runs(found.runs), problems, tables, found.runs)


def _beside_published(runs: Sequence[Run], problems: list[Problem]) -> Captioned | None:
    """The paper's table of those runs of which figures are published, if there are any."""
    try:
        return papers.paper(judge(run for run in runs if beside(*task_of(run))))
    except ConfigError as error:
        problems.append(Problem(PUBLISHED, str(error)))
        return None


def _section(
    table: Table, colours: dict[str, str], problems: list[Problem], track: Callable
) -> Section:
    is_pruned = bool(table.ratios())
    distributions = read_distributions(table, problems, track)
    return Section(
        title=f"{table.arch} on {table.dataset}",
        colours={variant.label: colours[variant.method] for variant in table.variants},
        by_ratio=grids.by_ratio(table) if is_pruned else None,
        details=grids.details(table),
        latencies=grids.latencies(table),
        kept=grids.kept_by_layer(table) if is_pruned else None,
        modes=comparison.modes(distributions),
        curves=plots.curves(table, colours),
        histograms=plots.histograms(distributions, colours),
        kept_plots=plots.kept_channels(table, colours),
    )


def write(report: Report, folder: Path) -> list[Path]:
    """Write `report.html`, `report.md`, `results.csv` and `runs.csv`; the paths of all."""
    texts = {
        "report.html": html(report),
        "report.md": markdown(report),
        "results.csv": results_csv(report.tables),
        "runs.csv": runs_csv(report.found),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_whole(folder / name, text)
    return [folder / name for name in texts]


def html(report: Report) -> str:
    """One page with everything in it."""
    environment = Environment(
        loader=PackageLoader("rni_pl.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_uri"] = data_uri
    page = environment.get_template("page.html")
    return page.render(
        report=report, rounding=ROUNDING, published=PUBLISHED, version=rni_pl.__version__
    )


def data_uri(svg: str) -> str:
    """An SVG as the address of an image."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def markdown(report: Report) -> str:
    """The tables of the report."""
    parts = ["# Pruning report", ROUNDING]
    if report.problems:
        listed = [
            f"- {grids.markdown_text(p.name)}: {grids.markdown_text(p.reason)}"
            for p in report.problems
        ]
        parts += ["## Problems", "\n".join(listed)]
    if report.published:
        table = grids.markdown(report.published.grid)
        parts += [f"## {PUBLISHED}", table, grids.markdown_text(report.published.caption)]
    for section in report.sections:
        parts.append(f"## {grids.markdown_text(section.title)}")
        if section.by_ratio:
            title = "Test accuracy after fine-tuning, by ratio:"
            parts += [title, grids.markdown(section.by_ratio)]
        parts.append(grids.markdown(section.details))
        if section.latencies:
            parts += ["Latency:", grids.markdown(section.latencies)]
        notes = [f"- {grids.markdown_text(f'{p.title}: {p.note}')}" for p in section.histograms]
        if section.modes:
            parts += ["Importances of the dense networks:", "\n".join(notes)]
            parts.append(grids.markdown(section.modes))
        if section.kept:
            parts += ["Channels kept in each layer:", grids.markdown(section.kept)]
    parts += ["## Runs", grids.markdown(report.runs)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def results_csv(tables: Iterable[Table]) -> str:
    """A line for each row of the tables: mean and standard deviation of every figure."""
    lines = []
    for table in tables:
        for row in table.rows:
            line: dict[str, Any] = {"dataset": table.dataset, "arch": table.arch}
            line |= {"method": row.variant.method, "variant": row.variant.label}
            line |= {"ratio": grids.ratio_name(row.ratio), "runs": len(row.runs)}
            line["seeds"] = " ".join(map(str, row.seeds))
            for name, stat in row.figures.items():
                line |= {f"{name}_mean": stat.mean, f"{name}_std": stat.std}
            lines.append(line)
    return _csv(lines)


def runs_csv(found: Iterable[Run]) -> str:
    """A line for each run: the figures of its summary as they are."""
    lines = []
    for run in found:
        plain = {key: value for key, value in run.summary.items() if not isinstance(value, dict)}
        lines.append({"run": run.name, **flatten(plain), **run.latency})
    return _csv(lines)


def _csv(lines: Sequence[dict[str, Any]]) -> str:
    columns = dict.fromkeys(key for line in lines for key in line)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    for line in lines:
        writer.writerow({key: _harmless(value) for key, value in line.items()})
    return text.getvalue()


def _harmless(value: Any) -> Any:
    """Text that no spreadsheet takes for a formula."""
    is_formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@"))
    return f"'{value}" if is_formula else value
