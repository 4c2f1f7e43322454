"""The report: which runs belong together, the figures, broken runs, and names that are hostile."""

import base64
import csv
import io
import json
import re
import shutil
import statistics
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import ROOT, SHORT

import rni_pl.report
from rni_pl import checkpoint, norm
from rni_pl.errors import CheckpointError
from rni_pl.report import figures, grids, render
from rni_pl.report.__main__ import main
from rni_pl.report.collect import Found, collect
from rni_pl.report.importances import read_distributions, shared_edges, shares
from rni_pl.report.tables import Table, tabulate

TRAIN: dict[str, Any] = {
    "dataset": "digits", "arch": "resnet20", "method": "rni", "test_acc": 0.9, "best_epoch": 1,
    "epochs": 2, "params": 269034, "macs": 40813184, "seconds": 1.5, "images_per_second": 99.0,
    "seed": 0,
}  # fmt: skip
PRUNE: dict[str, Any] = {
    "dataset": "digits", "arch": "resnet20", "method": "rni", "ratio": 0.5, "scope": "global",
    "target": "channels", "acc_dense": 0.9, "acc_pruned": 0.41, "acc_finetuned": 0.8765,
    "params_dense": 269034, "params_pruned": 134517, "macs_dense": 40813184,
    "macs_pruned": 20406593, "channels_dense": 48, "channels_pruned": 24,
    "kept": {"layer1.bn1": 4, "layer2.bn1": 20}, "widths": {"layer1.bn1": 16, "layer2.bn1": 32},
    "seed": 0,
}  # fmt: skip


def put(path: Path, summary: dict | None, config: dict | None = None) -> Path:
    """A run directory as a run leaves it."""
    path.mkdir(parents=True)
    if summary is not None:
        (path / "summary.json").write_text(json.dumps(summary))
    if config is not None:
        (path / "config.yaml").write_text(yaml.safe_dump(config))
    return path


def trained_run(path: Path, weight: float = 1e-4, **summary: Any) -> Path:
    config = {"command": "train", "seed": summary.get("seed", 0), "method": {"reg_weight": weight}}
    return put(path, {**TRAIN, **summary}, config)


def pruned_run(path: Path, parent: Path, lr: float = 0.1, **summary: Any) -> Path:
    config = {
        "command": "prune",
        "seed": summary.get("seed", 0),
        "checkpoint": str(parent),
        "optimizer": {"lr": lr},
        "prune": {"ratio": summary.get("ratio", 0.5), "scope": None},
    }
    return put(path, {**PRUNE, **summary}, config)


def report(*directories: Path) -> str:
    """Run the command; the text of the page."""
    main([*map(str, directories), "--output", str(directories[0])])
    return (directories[0] / "report.html").read_text()


def lines(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(file.read_text())))


def only_table(*directories: Path) -> Table:
    (table,) = tabulate(collect(directories).runs)
    return table


class Cells(HTMLParser):
    """The rows of all tables of a page, as text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self._inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self._inside = True

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.rows[-1][-1] += data


def test_a_sweep_with_a_failed_and_an_unfinished_run(
    command: Callable, trained: Path, pruned: Path, tmp_path: Path
) -> None:
    settings = ("arch=resnet20", "data=digits", *SHORT, "hydra.sweep.dir=runs/sweep")
    sweep = command("train", "-m", *settings, "method=l1", "optimizer.lr=0.1,1e30")
    assert sweep.status == 2  # the second job's loss is not finite
    runs = tmp_path / "runs"
    shutil.copytree(trained, runs / "dense")
    shutil.copytree(pruned, runs / "half")
    shutil.copytree(pruned, runs / "stopped")
    (runs / "stopped" / "summary.json").unlink()

    page = report(runs)
    text = (runs / "report.md").read_text()
    for shown in (page, text.replace("\\", "")):
        assert re.search(r"sweep/1\W.*failed: DivergenceError: the loss is not finite", shown)
        assert re.search(r"stopped\W.*unfinished.*1 of 1 epochs are done", shown)
    found = {line["run"]: line for line in lines(runs / "runs.csv")}
    assert set(found) == {"dense", "half", "sweep/0"}
    for name, line in found.items():
        summary = json.loads((runs / name / "summary.json").read_text())
        figures_of_run = {k: v for k, v in summary.items() if isinstance(v, int | float | str)}
        assert {key: line[key] for key in figures_of_run} == {
            key: str(value) for key, value in figures_of_run.items()
        }
    half = json.loads((runs / "half" / "summary.json").read_text())
    wanted = ["rni", "0.5", "1"]
    wanted += [f"{100 * half[key]:.2f}" for key in ("acc_dense", "acc_pruned", "acc_finetuned")]
    removed = [
        f"{100 * (1 - half[f'{k}_pruned'] / half[f'{k}_dense']):.1f} %" for k in ("params", "macs")
    ]
    wanted += [f"{half['params_pruned']:,}", removed[0], f"{half['macs_pruned']:,}", removed[1]]
    assert wanted in Cells(page).rows
    assert f"| {' | '.join(wanted)} |" in text
    for plots in ("Curves", "Importances of the dense networks", "Channels kept in each layer"):
        assert plots in page


def test_means_and_deviations_over_seeds(tmp_path: Path) -> None:
    accuracies = [0.8765, 0.8801, 0.8712]
    for seed, acc in enumerate(accuracies):
        parent = trained_run(tmp_path / "t" / str(seed), seed=seed, test_acc=0.9 + seed / 1000)
        pruned_run(tmp_path / "p" / str(seed), parent, seed=seed, acc_finetuned=acc)
    rows = Cells(report(tmp_path)).rows
    mean, std = statistics.fmean(accuracies), statistics.stdev(accuracies)
    assert ["rni", "90.10 ± 0.10", f"{100 * mean:.2f} ± {100 * std:.2f}"] in rows
    dense, half = lines(tmp_path / "results.csv")
    assert (dense["ratio"], half["ratio"]) == ("dense", "0.5")
    assert (half["runs"], half["seeds"]) == ("3", "0 1 2")
    assert float(half["acc_finetuned_mean"]) == mean
    assert float(half["acc_finetuned_std"]) == std
    assert float(half["params_mean"]) == PRUNE["params_pruned"]
    assert half["params_std"] == "0.0"


def test_one_run_has_no_deviation(tmp_path: Path) -> None:
    trained_run(tmp_path / "t")
    page = report(tmp_path)
    (line,) = lines(tmp_path / "results.csv")
    assert (line["acc_dense_mean"], line["acc_dense_std"]) == ("0.9", "")
    assert ["rni", "dense", "1", "90.00", "–", "–", "269,034", "–", "40,813,184", "–"] in Cells(
        page
    ).rows


def test_runs_that_differ_in_more_than_the_seed_are_not_averaged(tmp_path: Path) -> None:
    for weight in (1e-4, 1e-3):
        parent = trained_run(tmp_path / f"t{weight}", weight)
        for lr in (0.1, 0.01):
            pruned_run(tmp_path / f"p{weight}_{lr}", parent, lr)
    table = only_table(tmp_path)
    assert all(len(row.runs) == 1 for row in table.rows)
    assert {row.variant.label for row in table.rows} == {
        "rni, reg_weight=0.0001",
        "rni, reg_weight=0.001",
        "rni, reg_weight=0.0001, fine-tuning lr=0.1",
        "rni, reg_weight=0.0001, fine-tuning lr=0.01",
        "rni, reg_weight=0.001, fine-tuning lr=0.1",
        "rni, reg_weight=0.001, fine-tuning lr=0.01",
    }


def test_what_has_no_bearing_tells_no_runs_apart(tmp_path: Path) -> None:
    for seed in (0, 1):
        config = {
            "command": "train", "seed": seed, "overrides": [f"seed={seed}"],
            "data": {"batch_size": 64, "seed": seed, "split_seed": seed, "workers": seed},
            "trainer": {"max_epochs": 2, "accelerator": ["cpu", "gpu"][seed]},
        }  # fmt: skip
        put(tmp_path / str(seed), {**TRAIN, "seed": seed}, config)
    (row,) = only_table(tmp_path).rows
    assert (row.variant.label, len(row.runs)) == ("rni", 2)


def test_scopes_are_told_apart(tmp_path: Path) -> None:
    parent = trained_run(tmp_path / "t")
    pruned_run(tmp_path / "a", parent)
    pruned_run(tmp_path / "b", parent, scope="local")
    labels = {row.variant.label for row in only_table(tmp_path).rows}
    assert labels == {"rni", "rni, scope=global", "rni, scope=local"}


def test_runs_that_were_moved_find_their_parents(tmp_path: Path) -> None:
    for weight, acc in ((1e-4, 0.9), (1e-3, 0.8)):
        parent = trained_run(tmp_path / "old" / f"t{weight}", weight, test_acc=acc)
        pruned_run(tmp_path / "old" / f"p{weight}", parent, acc_dense=acc)
    (tmp_path / "old").rename(tmp_path / "new")
    table = only_table(tmp_path / "new")
    assert len(table.variants) == 2
    assert all(table.row(variant, 0.5) for variant in table.variants)


def test_pruned_runs_of_unknown_parents_are_not_averaged(tmp_path: Path) -> None:
    for parent in ("rni_weak", "rni_strong"):
        pruned_run(tmp_path / parent, Path("/elsewhere/runs") / parent, seed=len(parent))
    labels = [row.variant.label for row in only_table(tmp_path).rows]
    assert labels == ["rni, checkpoint=runs/rni_strong", "rni, checkpoint=runs/rni_weak"]


def test_summaries_without_configurations(tmp_path: Path) -> None:
    put(tmp_path / "a", TRAIN)
    put(tmp_path / "b", {**TRAIN, "seed": 1})
    (row,) = only_table(tmp_path).rows
    assert len(row.runs) == 2
    trained_run(tmp_path / "c", seed=2)
    labels = [(row.variant.label, len(row.runs)) for row in only_table(tmp_path).rows]
    assert labels == [("rni", 1), ("rni, config.yaml=missing", 2)]


def test_the_same_seed_twice_is_said(tmp_path: Path) -> None:
    trained_run(tmp_path / "a")
    trained_run(tmp_path / "b")
    assert "has the settings and the seed of a; both count" in report(tmp_path)


def test_a_directory_given_twice_counts_once(tmp_path: Path) -> None:
    trained_run(tmp_path / "runs" / "a")
    assert len(collect([tmp_path, tmp_path / "runs", tmp_path / "runs" / "a"]).runs) == 1


def test_ratio_auto_is_drawn_where_it_cut(tmp_path: Path) -> None:
    parent = trained_run(tmp_path / "t")
    pruned_run(tmp_path / "a", parent, ratio="auto", channels_pruned=36)
    pruned_run(tmp_path / "b", parent, ratio=0.5)
    table = only_table(tmp_path)
    assert table.ratios() == [0.5, "auto"]
    line = figures.points(table, table.variants[0], "acc_finetuned", figures.RATIO)
    assert [place for place, _ in line] == [0, 0.25, 0.5]
    line = figures.points(table, table.variants[0], "acc_finetuned", figures.MACS)
    assert [place for place, _ in line] == [20406593, 20406593, 40813184]


def test_latency_where_measured(tmp_path: Path) -> None:
    parent = trained_run(tmp_path / "t")
    pruned_run(tmp_path / "a", parent, latency={"eager": {"batch_64": 1.85}, "machine": "x"})
    pruned_run(tmp_path / "b", parent, ratio=0.9)
    rows = Cells(report(tmp_path)).rows
    assert ["method", "ratio", "eager batch 64"] in rows
    assert ["rni", "0.5", "1.85"] in rows
    assert lines(tmp_path / "results.csv")[1]["latency.eager.batch_64_mean"] == "1.85"


def test_methods_in_order_and_the_best_of_each_ratio(tmp_path: Path) -> None:
    for method, acc in (("ucs", 0.7), ("l1", 0.8), ("polarization", 0.85), ("rni", 0.9)):
        pruned_run(tmp_path / method, Path("t"), method=method, acc_finetuned=acc)
    grid = grids.by_ratio(only_table(tmp_path))
    assert [row[0] for row in grid.rows] == ["rni", "l1", "ucs", "polarization"]
    assert (0, 2) in grid.best
    assert not {(1, 2), (2, 2), (3, 2)} & grid.best
    assert "| rni | **90.00** | **90.00** |" in grids.markdown(grid)


BROKEN = {
    "cut off": ('{"dataset": "dig', "summary.json is damaged"),
    "no mapping": ("[1, 2]", "summary.json is damaged"),
    "deep": ("[" * 100_000, "summary.json is damaged"),
    "bytes": ("\ud800", "summary.json is damaged"),
    "missing": (json.dumps({"dataset": "digits"}), "arch is missing"),
    "text": (json.dumps({**TRAIN, "params": "many"}), "params=many is not a whole number"),
    "nan": (json.dumps({**TRAIN, "test_acc": float("nan")}), "test_acc=nan is not a number in [0"),
    "percent": (json.dumps({**PRUNE, "acc_pruned": 41.0}), "acc_pruned=41.0 is not a number"),
    "zero": (json.dumps({**PRUNE, "macs_dense": 0}), "macs_dense=0 is not a whole number > 0"),
    "kept": (json.dumps({**PRUNE, "kept": {"bn": "all"}}), "is not a number of channels"),
    "latency": (json.dumps({**TRAIN, "latency": 3}), "latency=3 is not a mapping"),
}


@pytest.mark.parametrize("damage", BROKEN)
def test_a_broken_summary_is_named(damage: str, tmp_path: Path) -> None:
    text, reason = BROKEN[damage]
    trained_run(tmp_path / "sound")
    put(tmp_path / "broken_one", None)
    (tmp_path / "broken_one" / "summary.json").write_bytes(text.encode(errors="surrogatepass"))
    found = collect([tmp_path])
    assert [run.name for run in found.runs] == ["sound"]
    (problem,) = found.problems
    assert problem.name == "broken_one"
    assert reason in problem.reason
    assert "broken_one" in report(tmp_path)


@pytest.mark.parametrize(
    "text", ["a: [", "just words", "a: !!python/name:os.system", "&a {b: *a}", ""]
)
def test_a_broken_configuration_is_named(text: str, tmp_path: Path) -> None:
    trained_run(tmp_path / "sound")
    put(tmp_path / "broken_one", TRAIN)
    (tmp_path / "broken_one" / "config.yaml").write_text(text)
    (problem,) = collect([tmp_path]).problems
    assert problem.name == "broken_one"
    assert problem.reason.startswith("config.yaml is damaged")


def test_unfinished_runs_of_every_kind(tmp_path: Path) -> None:
    config = {"command": "train", "trainer": {"max_epochs": 9}}
    put(tmp_path / "begun", None, config)
    for name, contents in (("halfway", {"epoch": 3}), ("torn", [])):
        put(tmp_path / name / "checkpoints", None)
        torch.save(contents, tmp_path / name / "checkpoints" / "last.ckpt")
    put(tmp_path / "strange", None, config)
    (tmp_path / "strange" / "failure.json").write_text("[]")
    put(tmp_path / "of_something_else", None, {"model": "bert"})
    reasons = {problem.name: problem.reason for problem in collect([tmp_path]).problems}
    assert reasons.keys() == {"begun", "halfway", "torn", "strange"}
    assert "0 of 9 epochs are done" in reasons["begun"]
    assert "4 of an unknown number epochs" in reasons["halfway"]
    assert "last.ckpt is damaged" in reasons["torn"]
    assert "failure.json is damaged" in reasons["strange"]


def test_only_broken_runs_still_make_a_page(tmp_path: Path) -> None:
    put(tmp_path / "begun", None, {"command": "train"})
    assert "begun" in report(tmp_path)


HOSTILE = '<script>alert("$x_$")</script> | `a` [b](http://c) =1'


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """Runs with names that a page must not take for its own text."""
    parent = trained_run(tmp_path / "t<b>", dataset=HOSTILE, arch=HOSTILE, method="=cmd()")
    pruned_run(
        tmp_path / "p|q", parent, dataset=HOSTILE, arch=HOSTILE, method="=cmd()",
        kept={HOSTILE: 3, "$": 4}, widths={HOSTILE: 4, "$": 5},
    )  # fmt: skip
    put(tmp_path / "<i>x", None, {"command": "train"})
    save_checkpoint(parent, "bn", {"bn": torch.rand(9)})
    return tmp_path


def test_names_cannot_break_the_page(hostile: Path) -> None:
    page = report(hostile)
    assert "<script" not in page
    assert "<i>x" not in page
    assert "&lt;script&gt;" in page
    assert HOSTILE in {cell for row in Cells(page).rows for cell in row}
    text = (hostile / "report.md").read_text()
    assert not re.search(r"(?<!\\)<script", text)
    pipes = [re.findall(r"(?<!\\)\|", line) for line in text.splitlines() if "cmd" in line]
    assert {len(found) for found in pipes} == {0, 4, 10, 11}  # as the tables have columns
    assert lines(hostile / "runs.csv")[0]["method"] == "'=cmd()"


def test_the_page_needs_nothing_else(hostile: Path) -> None:
    page = report(hostile)
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert sources
    assert all(source.startswith(("data:image/svg+xml;base64,", "#")) for source in sources)
    assert "@import" not in page
    assert "url(" not in page
    plots = [ET.fromstring(base64.b64decode(s.partition(",")[2])) for s in sources if "," in s]
    assert len(plots) == 5  # three curves, a histogram, one ratio
    assert all(plot.tag.endswith("svg") for plot in plots)
    assert not any(element.tag.endswith("script") for plot in plots for element in plot.iter())


def test_the_same_runs_make_the_same_page(hostile: Path) -> None:
    found = collect([hostile])
    assert render.html(render.make_report(found)) == render.html(render.make_report(found))


def save_checkpoint(run: Path, kind: str, gammas: dict[str, torch.Tensor]) -> None:
    state = {f"model.{name}.weight": gamma for name, gamma in gammas.items()}
    state |= {f"model.{name}.running_mean": torch.zeros(len(g)) for name, g in gammas.items()}
    state["model.fc.weight"] = torch.zeros(3)
    (run / "checkpoints").mkdir()
    contents = {"hyper_parameters": {"spec": {"norm": kind}}, "state_dict": state}
    torch.save(contents, run / "checkpoints" / "best.ckpt")


@pytest.mark.parametrize("method", ["rni", "l1"])
def test_importances_are_those_of_the_network(
    method: str, command: Callable, trained: Path
) -> None:
    if method == "l1":
        settings = ("arch=resnet20", "data=digits", "method=l1", *SHORT, "hydra.run.dir=run")
        assert command("train", *settings).status == 0
        trained = Path("run")
    wanted = norm.scale_sizes(rni_pl.load_model(trained))
    found = checkpoint.read_scale_sizes(trained)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_histograms_hold_every_channel(tmp_path: Path) -> None:
    gammas = torch.linspace(-20, 5, 40)
    for seed in (0, 1):
        run = trained_run(tmp_path / str(seed), seed=seed)
        save_checkpoint(run, "sigbn", {"a.bn": gammas[:30], "b.bn": gammas[30:]})
    (one,) = read_distributions(only_table(tmp_path), [])
    assert (one.runs, len(one.sizes)) == (2, 80)
    assert one.below(0.1) == pytest.approx(float((gammas.sigmoid() < 0.1).float().mean()))
    edges = shared_edges([one])
    assert shares(one, edges).sum() == pytest.approx(1)
    assert edges[0] == 1e-6
    assert edges[-1] >= one.sizes.max()


def test_two_modes_are_told_from_one(tmp_path: Path) -> None:
    bump = torch.randn(200)
    save_checkpoint(trained_run(tmp_path / "rni"), "sigbn", {"bn": torch.cat([bump - 8, bump + 2])})
    save_checkpoint(trained_run(tmp_path / "l1", method="l1"), "bn", {"bn": 1 + 0.1 * bump})
    page = report(tmp_path)
    assert page.count("two modes, valley at") == 1
    assert page.count("no valley between two modes") == 1


@pytest.mark.parametrize("damage", ["torn", "foreign", "nan"])
def test_a_broken_checkpoint_costs_the_histogram_alone(damage: str, tmp_path: Path) -> None:
    run = trained_run(tmp_path / "t")
    save_checkpoint(run, "bn", {"bn": torch.full((3,), float("nan"))})
    if damage == "torn":
        (run / "checkpoints" / "best.ckpt").write_bytes(b"PK")
    elif damage == "foreign":
        torch.save([1], run / "checkpoints" / "best.ckpt")
    with pytest.raises(CheckpointError):
        checkpoint.read_scale_sizes(run)
    page = report(tmp_path)
    assert "<strong>t</strong>: no histogram" in page
    assert "269,034" in page


def test_stored_summaries_of_the_project_render() -> None:
    text = render.markdown(render.make_report(collect([ROOT / "docs" / "runs"])))
    assert "resnet56 on image\\_folder" in text
    assert "| rni | 71.80 | 74.55 | 69.57 |" in text


def mistake(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    return line


def test_mistakes_are_one_line(
    capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "nowhere is not a directory" in mistake(capsys, "nowhere")
    assert "DIR" in mistake(capsys)
    assert "--colour" in mistake(capsys, "x", "--colour")
    assert "no runs in or below" in mistake(capsys, str(tmp_path))
    trained_run(tmp_path / "t")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for module in ("render", "figures"):
        monkeypatch.delitem(sys.modules, f"rni_pl.report.{module}")
        monkeypatch.delattr(rni_pl.report, module)
    assert "pip install 'rni_pl[report]'" in mistake(capsys, str(tmp_path))
    assert not list(tmp_path.glob("report*"))


def test_found_nothing_is_an_empty_report() -> None:
    assert "0 runs" in render.html(render.make_report(Found()))
