"""Beside published figures: the report's table, and the stored runs beside the reference's."""

import shutil
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from made_up_runs import Cells, composed_run, report, trained_run

from rni_pl.report.collect import collect
from rni_pl.report.departures import Judged, judge
from rni_pl.report.published import Published, published


def test_the_report_shows_the_papers_table_by_itself(tmp_path: Path) -> None:
    run = composed_run(tmp_path / "cell", "experiment=cifar10_vgg16", test_acc=0.9361)
    page = report(tmp_path)
    (ours, published) = (row for row in Cells(page).rows if row and row[0] == "vgg16 on cifar10")
    assert (ours[2], published[2]) == ("93.61", "93.63")
    assert "| vgg16 on cifar10 | ours, 160 epochs | 93.61 |" in (tmp_path / "report.md").read_text()
    trained_run(tmp_path / "other", dataset="cifar10", arch="vgg16", method="=x|$(y)")
    assert "Beside published figures" in report(tmp_path)  # any method has its place
    shutil.copytree(run, tmp_path / "again")
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings["data"]["padding"] = 2
    (tmp_path / "again" / "config.yaml").write_text(yaml.safe_dump(settings))
    page = report(tmp_path)
    assert "<strong>Beside published figures</strong>: runs of one cell differ" in page
    assert "93.63" not in page


REFERENCE = [one for one in published() if one.name == "reference implementation"]


@pytest.fixture(scope="module")
def stored() -> list[Judged]:
    return judge(collect([ROOT / "docs" / "runs" / "short"]).runs)


def beside_the_reference(stored: list[Judged], source: Published) -> list[Judged]:
    """Pruned runs of RNI with seed 0, the paper's penalty, and the reference's epochs."""
    return [
        one
        for one in stored
        if (one.run.summary["arch"], one.run.summary["method"]) == (source.arch, "rni")
        and one.run.is_pruned
        and one.run.summary["seed"] == 0
        and one.budget == source.budget
        and not (one.off.penalty or one.off.beyond or one.off.training)
    ]


@pytest.mark.parametrize("source", REFERENCE, ids=lambda source: source.arch)
def test_plain_runs_are_at_most_half_a_point_below_the_reference(
    stored: list[Judged], source: Published
) -> None:
    plain = [one for one in beside_the_reference(stored, source) if not one.off.are_switches]
    reached = {one.run.ratio: 100 * one.run.summary["acc_finetuned"] for one in plain}
    for ratio in (0.5, 0.9):
        assert reached[ratio] > source.accuracies["rni"][ratio] - 0.5, ratio


@pytest.mark.parametrize("source", REFERENCE, ids=lambda source: source.arch)
def test_the_best_switch_beats_the_reference(stored: list[Judged], source: Published) -> None:
    switched = [one for one in beside_the_reference(stored, source) if one.off.are_switches]
    best = max(one.run.summary["acc_finetuned"] for one in switched if one.run.ratio == 0.9)
    assert 100 * best > source.accuracies["rni"][0.9] + 1.5
