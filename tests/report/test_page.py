"""The command, and what its page, its Markdown and its plots show."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_python
from made_up_runs import Cells, pruned_run, report, save_checkpoint, trained_run

import rni_pl.report
from rni_pl.report import page, plots, tables
from rni_pl.report.__main__ import main
from rni_pl.report.runs import read


def a_few_runs(folder: Path) -> Path:
    for method in ("rni", "l1"):
        parent = trained_run(folder / method, method=method)
        for ratio, accuracy in ((0.5, 0.88), (0.9, 0.7)):
            timed = {"dense_ms": 10.0, "pruned_ms": 4.0} if method == "rni" else {}
            pruned_run(
                folder / f"{method}_{ratio}", parent, method=method, ratio=ratio,
                acc_finetuned=accuracy, latency=timed,
            )  # fmt: skip
    return folder


def test_the_command_writes_a_page_markdown_and_csv(tmp_path: Path) -> None:
    a_few_runs(tmp_path / "runs")
    done = run_python("-m", "rni_pl.report", "runs", cwd=tmp_path)
    assert done.status == 0, done.err
    assert {path.name for path in (tmp_path / "runs").glob("r*.*")} >= {
        "report.html", "report.md", "runs.csv"
    }  # fmt: skip
    html = (tmp_path / "runs" / "report.html").read_text()
    rows = Cells(html).rows
    assert ["rni", "90.00", "88.00", "70.00"] in rows
    assert ["rni", "0.5", "10", "4", "2.50"] in rows
    assert [row[0] for row in rows].count("layer1.bn1") == 1
    assert not re.findall(r'(?:src|href)="(?!data:)', html)  # it needs no other file


def test_names_stay_text(tmp_path: Path) -> None:
    trained_run(tmp_path / "<b>bold", method="<script>alert(1)</script>", arch="a|b")
    html = report(tmp_path)
    assert "<script>" not in html
    assert "<b>bold" not in html
    assert "a\\|b" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(("arguments", "words"), [
    (["missing"], "missing is neither"), ([], "required: RUNS"),
    (["a", "--fill", "x"], "unrecognized arguments: --fill x"),
])  # fmt: skip
def test_mistakes_are_one_line(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    error = capsys.readouterr().err
    assert (stop.value.code, error.count("\n")) == (2, 1)
    assert words in error


def test_no_runs_are_a_mistake_but_broken_ones_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        main([str(tmp_path)])
    assert "no runs in or below" in capsys.readouterr().err
    trained_run(tmp_path / "bad", test_acc=7)
    assert "test_acc=7 is not allowed" in report(tmp_path)


def test_what_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for module in ("page", "runs", "tables", "plots"):
        monkeypatch.delitem(sys.modules, f"rni_pl.report.{module}", raising=False)
        monkeypatch.delattr(rni_pl.report, module, raising=False)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(SystemExit):
        main([str(tmp_path)])
    assert "pip install 'rni_pl[report]'" in capsys.readouterr().err


def test_two_test_images_are_no_peak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The axis of accuracies spans ten points at least."""
    parent = trained_run(tmp_path / "d", test_acc=0.9)
    pruned_run(tmp_path / "p", parent, acc_finetuned=0.9002, acc_pruned=0.9)
    (task,) = tables.tasks(read([tmp_path]).table)
    spans = []
    honest = plots._honest
    monkeypatch.setattr(
        plots, "_honest", lambda axes: (honest(axes), spans.append(axes.get_ylim()))
    )
    assert len(plots.curves(task)) == 3
    assert all(high - low >= plots.SPAN - 1e-9 and high <= 1.02 for low, high in spans)


def test_small_pictures_share_their_axes(tmp_path: Path) -> None:
    for method, low in (("rni", -8.0), ("l1", 0.4)):
        run = trained_run(tmp_path / method, method=method)
        gamma = torch.cat([torch.full((50,), low), torch.full((50,), 0.7)])
        save_checkpoint(run, "sigbn" if method == "rni" else "bn", {"bn": gamma})
    found = read([tmp_path])
    (section,) = page.sections(found)
    assert [plot.title for plot in section.plots] == ["Importances of the dense networks"]
    assert len(section.notes) == 2
    (task,) = tables.tasks(found.table)
    values = {name: np.linspace(0.1, 1, 50) for name in task.variants}
    svg = plots.histograms(task, values).svg  # type: ignore[union-attr]
    assert svg.count(">0.01<") == 2  # below both pictures, and only there
    assert svg.count("share of the channels") == 1


def test_a_network_that_shrinks_is_drawn(tmp_path: Path) -> None:
    trained_run(tmp_path / "whole")
    assert "What an epoch costs" not in report(tmp_path)
    trained_run(tmp_path / "less", weight=1e-3, macs_by_epoch=[40_000_000, 10_000_000])
    page = report(tmp_path)
    assert "What an epoch costs while the network shrinks" in page


def test_a_damaged_checkpoint_costs_its_histogram_only(tmp_path: Path) -> None:
    run = trained_run(tmp_path / "t")
    save_checkpoint(run, "sigbn", {"bn": torch.zeros(4)})
    (run / "checkpoints" / "best.ckpt").write_bytes(b"x")
    html = report(tmp_path)
    assert "no histogram" in html
    assert "90.00" in html


def test_modes_in_words() -> None:
    apart = np.concatenate([np.full(300, 1e-4), np.full(300, 0.8)])
    apart = apart * np.exp(0.2 * np.random.default_rng(0).standard_normal(600))
    assert page.modes(apart).startswith("two modes, valley at")
    assert "no valley" in page.modes(apart[300:])
