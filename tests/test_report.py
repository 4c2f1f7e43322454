"""The report: figures as in the summaries, failed runs, hostile names, histograms, mistakes."""

import base64
import json
import pkgutil
import re
import shutil
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SHORT, run_python
from made_up_runs import (
    Cells,
    lines,
    only_table,
    pruned_run,
    put,
    report,
    save_checkpoint,
    trained_run,
)

import rni_pl.report
from rni_pl import checkpoint, norm
from rni_pl.errors import CheckpointError
from rni_pl.report import render
from rni_pl.report.__main__ import main
from rni_pl.report.collect import Found, collect
from rni_pl.report.importances import read_distributions, shared_edges, shares
from rni_pl.valley import find_valley


def test_a_sweep_with_a_failed_and_an_unfinished_run(
    command: Callable, trained: Path, pruned: Path, tmp_path: Path
) -> None:
    settings = ("arch=resnet20", "data=digits", *SHORT, "hydra.sweep.dir=runs/sweep")
    sweep = command("train", "-m", *settings, "method=l1", "optimizer.lr=1e30")
    assert sweep.status == 2  # the loss is not finite
    runs = tmp_path / "runs"
    shutil.copytree(trained, runs / "dense")
    shutil.copytree(pruned, runs / "half")
    shutil.copytree(pruned, runs / "stopped")
    (runs / "stopped" / "summary.json").unlink()

    done = run_python("-m", "rni_pl.report", "runs", cwd=tmp_path)
    assert done.status == 0, done.err
    page = (runs / "report.html").read_text()
    text = (runs / "report.md").read_text()
    for shown in (page, text.replace("\\", "")):
        assert re.search(r"sweep/0\W.*failed: DivergenceError: the loss is not finite", shown)
        assert re.search(r"stopped\W.*unfinished.*1 of 1 epochs are done", shown)
    found = {line["run"]: line for line in lines(runs / "runs.csv")}
    assert set(found) == {"dense", "half"}
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


HOSTILE = '<script>alert("$x_$")</script> | `a` [b](http://c) =1'


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """Runs with names that a page must not take for its own text."""
    parent = trained_run(tmp_path / "t<b>", dataset=HOSTILE, arch=HOSTILE, method="=cmd()|x")
    pruned_run(
        tmp_path / "p|q", parent, dataset=HOSTILE, arch=HOSTILE, method="=cmd()|x",
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
    assert {len(found) for found in pipes} == {0, 4, 9, 10, 11}  # as the tables have columns
    assert lines(hostile / "runs.csv")[0]["method"] == "'=cmd()|x"


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
    assert (len(one.parts), len(one.pooled.values)) == (2, 80)
    assert one.pooled.below(0.1) == pytest.approx(float((gammas.sigmoid() < 0.1).float().mean()))
    edges = shared_edges([one])
    assert shares(one, edges).sum() == pytest.approx(1)
    assert edges[0] == 1e-6
    assert edges[-1] >= one.pooled.values.max()


def test_two_modes_are_told_from_one(tmp_path: Path) -> None:
    bump = torch.randn(400)
    save_checkpoint(trained_run(tmp_path / "rni"), "sigbn", {"bn": torch.cat([bump - 8, bump + 2])})
    shallow = 0.4 + 0.2 * bump
    assert find_valley(shallow.abs()) is not None  # of no depth that counts
    save_checkpoint(trained_run(tmp_path / "l1", method="l1"), "bn", {"bn": shallow})
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
    for module in ("render", "plots"):
        monkeypatch.delitem(sys.modules, f"rni_pl.report.{module}")
        monkeypatch.delattr(rni_pl.report, module)
    assert "pip install 'rni_pl[report]'" in mistake(capsys, str(tmp_path))
    assert not list(tmp_path.glob("report*"))


def test_the_package_names_its_modules() -> None:
    named = set(re.findall(r"`(\w+)`", rni_pl.report.__doc__ or ""))
    modules = {module.name for module in pkgutil.iter_modules(rni_pl.report.__path__)}
    assert named == modules - {"__main__"}


def test_found_nothing_is_an_empty_report() -> None:
    assert "0 runs" in render.html(render.make_report(Found()))
