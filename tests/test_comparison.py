"""Tables beside published figures, at one budget and of switches; pages filled with them."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from made_up_runs import composed_run, pruned_from, save_checkpoint, trained_run

from rni_pl.errors import ConfigError
from rni_pl.report import comparison, pages, papers
from rni_pl.report.__main__ import main
from rni_pl.report.collect import collect
from rni_pl.report.departures import judge

SHORT = "experiment=short_vgg16"
PRUNE = "experiment=prune_short_vgg16"


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of VGG-16 at the short budget: RNI with two seeds, a stronger penalty, two switches."""
    tmp_path = tmp_path_factory.mktemp("short")
    root = f"data.root={tmp_path}"
    for seed, accuracies in enumerate([(0.80, 0.81, 0.70), (0.82, 0.81, 0.72)]):
        dense, half, tenth = accuracies
        run = composed_run(
            tmp_path / f"rni_{seed}", SHORT, root, "method=rni", f"seed={seed}", test_acc=dense
        )
        gamma = torch.randn(800, generator=torch.Generator().manual_seed(seed))
        save_checkpoint(run, "sigbn", {"bn": gamma - 8 * (torch.arange(800) < 300)})
        for ratio, acc in ((0.5, half), (0.9, tenth)):
            settings = (PRUNE, f"prune.ratio={ratio}", f"seed={seed}")
            figures = {"acc_finetuned": acc, "precision": ("32-true", "bf16-mixed")[seed]}
            pruned_from(run, *settings, **figures)
    composed_run(tmp_path / "strong", f"{SHORT}_scaled", root, "method=rni", test_acc=0.5)
    first = tmp_path / "rni_0"
    pruned_from(first, PRUNE, "switch=distill", name="distill", acc_finetuned=0.7345)
    pruned_from(first, PRUNE, "switch=auto", name="auto", acc_finetuned=0.6)
    pol = composed_run(tmp_path / "pol", SHORT, root, "method=polarization", test_acc=0.77)
    pruned_from(pol, PRUNE, acc_finetuned=0.66)
    return tmp_path


def test_the_papers_table(short: Path) -> None:
    found = papers.paper(judge(collect([short]).runs))
    assert found is not None
    table = {row[1]: dict(zip(found.grid.header, row, strict=True)) for row in found.grid.rows}
    ours = table["ours, 4 + 2 epochs"]
    assert ours["network and data"] == "vgg16 on CIFAR-10 (JPEG)"
    assert (ours["rni dense"], ours["rni 0.5"]) == ("81.00 ± 1.41", "81.00 ± 0.00")
    assert ours["rni 0.9"] == "71.00 ± 1.41"  # neither a switch nor another penalty is in it
    assert (ours["l1 dense"], ours["ucs 0.9"]) == ("–", "–")
    assert (ours["polarization dense"], ours["polarization 0.9"]) == ("77.00", "66.00")
    published = table["published, 160 + 160 epochs"]
    assert (published["rni dense"], published["l1 0.5"]) == ("93.63", "93.67")
    assert (published["ucs 0.9"], published["polarization 0.9"]) == ("84.05", "–")
    assert table["reference implementation, 4 + 2 epochs"]["rni 0.9"] == "62.77"
    assert "where ± is given, two or more of the seeds 0, 1, else one of them;" in found.caption
    assert "the paper's hyper-parameters (it has no polarization) and protocol" in found.caption
    assert "160 + 160 epochs on cifar10, ours 4 + 2" in found.caption
    assert "best epoch is picked on the test set" in found.caption


def test_budgets_are_rows_of_their_own(tmp_path: Path) -> None:
    for name, epochs in (("short", 4), ("long", 160)):
        run = composed_run(
            tmp_path / name, "experiment=cifar10_vgg16", f"trainer.max_epochs={epochs}"
        )
        pruned_from(run, "experiment=prune_paper", f"trainer.max_epochs={epochs}")
    found = papers.paper(judge(collect([tmp_path]).runs))
    assert found is not None
    assert [row[1] for row in found.grid.rows] == [
        "ours, 4 + 4 epochs", "ours, 160 + 160 epochs", "published, 160 + 160 epochs"
    ]  # fmt: skip
    assert "ours 4 + 4 and 160 + 160 on cifar10" in found.caption
    shutil.rmtree(tmp_path / "short")
    shutil.rmtree(tmp_path / "short_0.9")
    found = papers.paper(judge(collect([tmp_path]).runs))
    assert found is not None
    assert "not the conditions" not in found.caption


def test_other_protocols_and_recipes_are_not_the_papers(tmp_path: Path) -> None:
    cell = "experiment=cifar100_resnet56"
    composed_run(tmp_path / "validated", cell, "protocol=validation")
    composed_run(tmp_path / "lr", cell, "optimizer.lr=0.05")
    composed_run(tmp_path / "shifted", cell, "method.shift=1")
    composed_run(tmp_path / "wider", cell, "+arch.width=2")
    callback = "{_target_: pytorch_lightning.callbacks.StochasticWeightAveraging}"
    composed_run(tmp_path / "anothers", cell, "arch._target_=my.resnet56", "+arch.depth=56")
    composed_run(tmp_path / "averaged", cell, f"+trainer.callbacks=[{callback}]")
    judged = judge(collect([tmp_path]).runs)
    assert papers.paper(judged) is None
    beyond = [one.run.name for one in judged if one.off.beyond and not one.off.are_switches]
    assert beyond == ["anothers", "averaged", "wider"]


def test_runs_that_differ_are_not_averaged_in_a_cell(tmp_path: Path) -> None:
    for i, padding in enumerate((2, 4)):
        composed_run(tmp_path / str(i), "experiment=cifar10_vgg16", f"data.padding={padding}")
    with pytest.raises(ConfigError, match=r"0 .*padding=2.* and 1 .*padding=4"):
        papers.paper(judge(collect([tmp_path]).runs))


@pytest.mark.parametrize("arch", ["vgg16", "resnet56"])
def test_the_papers_own_settings_depart_in_nothing(arch: str, tmp_path: Path) -> None:
    for method in ("rni", "l1", "ucs", "polarization"):
        cell = (f"experiment=cifar10_{arch}", f"method={method}")
        run = composed_run(tmp_path / method, *cell)
        scope = "local" if method == "ucs" else "global"
        pruned_from(run, "experiment=prune_paper", f"prune.scope={scope}")
    judged = judge(collect([tmp_path]).runs)
    assert len(judged) == 8
    assert not any(one.off.penalty or one.off.are_switches for one in judged)


def test_arguments_of_a_network_of_ones_own_depart_in_nothing(tmp_path: Path) -> None:
    own = ("arch._target_=torchvision.models.squeezenet1_1", "+arch.dropout=0.2")
    for method in ("rni", "tests.Own"):
        run = composed_run(tmp_path / method, "experiment=cifar10_vgg16", *own)
        summary = json.loads((run / "summary.json").read_text())
        (run / "summary.json").write_text(json.dumps({**summary, "method": method}))
    judged = judge(collect([tmp_path]).runs)
    assert [(one.off.training, one.off.beyond) for one in judged] == [({}, {}), ({}, {})]


def test_switches_beside_plain_runs(short: Path) -> None:
    vgg = [one for one in judge(collect([short]).runs) if one.run.summary["method"] == "rni"]
    grid = comparison.switches(vgg)
    assert grid is not None
    assert [row[:5] for row in grid.rows] == [
        ["rni", "4 + 2", "plain", "71.00 ± 1.41", "–"],
        ["rni", "4 + 2", "distill.weight=0.9", "73.45", "+3.45"],  # to seed 0 alone
        ["rni", "4 + 2", "prune.ratio=auto", "60.00", "–"],
    ]
    plain = [one for one in vgg if not one.off.are_switches]
    assert comparison.switches(plain) is None
    others = [one for one in vgg if one.off.are_switches or one.run.summary["seed"] == 1]
    unpaired = comparison.switches(others)
    assert unpaired is not None
    assert [row[4] for row in unpaired.rows] == ["–"] * 3


def test_a_budget_with_its_cost(short: Path) -> None:
    (table,) = comparison.at_budget(judge(collect([short]).runs))
    rows = [row for row in comparison.costs(table).rows if row[1] == "0.9"]
    weak = next(row for row in rows if row[0].startswith("rni"))
    assert weak[2:6] == ["71.00 ± 1.41", "41.00 ± 0.00", "–", "2"]
    assert weak[-2:] == ["32-true, bf16-mixed", "0, 1"]
    assert next(row for row in rows if row[0] == "polarization")[-2] == "–"  # an older run
    methods = {row[0] for row in comparison.costs(table).rows}
    assert methods == {
        "polarization", "rni, reg_weight=0.001", "rni, reg_weight=0.04"
    }  # fmt: skip


PAGE = """# Results

<!-- table paper -->
<!-- end -->

Some text, 1.23.

<!-- table accuracy: vgg16 on CIFAR-10 (JPEG) -->
| rni | 99.99 |
<!-- end -->

<!-- table switches -->
<!-- end -->

<!-- table modes -->
<!-- end -->

<!-- table budget: resnet56 on digits -->
<!-- end -->

<!-- figure importances -->
<!-- end -->
<!-- figure curves -->
<!-- end -->
"""


def test_a_page_is_filled_from_runs_and_from_what_was_stored_of_them(
    short: Path, tmp_path: Path
) -> None:
    page, again = tmp_path / "page.md", tmp_path / "again.md"
    for file in (page, again):
        file.write_text(PAGE)
    main([str(short), "--fill", str(page), "--store", str(tmp_path / "runs")])
    text = page.read_text()
    assert "99.99" not in text
    assert "Some text, 1.23.\n" in text
    dense, half, ninety = "**81.00 ± 1.41**", "81.00 ± 0.00 (20.4)", "**71.00 ± 1.41 (20.4)**"
    assert f"| rni, reg\\_weight=0.001 | {dense} | {half} | {ninety} |" in text
    assert text.count(pages.NO_RUNS) == 1  # none of resnet56
    drawings = re.findall(r"!\[.*\]\((.*)\)", text)
    assert len(drawings) == 4
    assert all((tmp_path / name).read_text().startswith("<?xml") for name in drawings)

    stored = [file for file in (tmp_path / "runs").rglob("*") if file.is_file()]
    assert {file.name for file in stored} == {"summary.json", "config.yaml", "importances.json"}
    assert not any(str(short) in file.read_text() for file in stored)
    main([str(tmp_path / "runs"), "--fill", str(again)])
    assert again.read_text() == text
    summary = tmp_path / "runs" / "rni_1_0.9" / "summary.json"
    summary.write_text(json.dumps({**json.loads(summary.read_text()), "acc_finetuned": 0.7201}))
    main([str(tmp_path / "runs"), "--fill", str(again)])
    assert again.read_text() != text


def test_the_projects_results_are_what_the_command_makes(tmp_path: Path) -> None:
    shutil.copy(ROOT / "docs" / "results.md", tmp_path)
    main([str(ROOT / "docs" / "runs"), "--fill", str(tmp_path / "results.md")])
    assert (tmp_path / "results.md").read_text() == (ROOT / "docs" / "results.md").read_text()
    drawn = {file.name for file in tmp_path.glob("figures/*")}
    assert drawn == {file.name for file in (ROOT / "docs" / "figures").iterdir()}


MISTAKES = {
    "<!-- table prices -->\n<!-- end -->": "line 1: table prices is unknown; allowed: paper",
    "<!-- table paper -->": "line 1: no <!-- end -->",
    "<!-- table paper -->\n<!-- table paper -->\n<!-- end -->": "line 1: no <!-- end -->",
    "x\n<!-- end -->": "line 2: <!-- end --> without a beginning",
    "no marks": "has no place to fill",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_mistakes_in_a_page_leave_it_as_it_was(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    trained_run(tmp_path / "t")
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--fill", str(page)])
    assert MISTAKES[text] in capsys.readouterr().err
    assert page.read_text() == text


def test_runs_that_cannot_be_compared_are_named(
    short: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(short / "rni_0_0.9", tmp_path / "runs" / "orphan")
    (tmp_path / "page.md").write_text("<!-- table paper -->\n<!-- end -->\n")
    main([str(tmp_path / "runs"), "--fill", str(tmp_path / "page.md")])
    assert "orphan: compared with nothing: its settings" in capsys.readouterr().err
    assert pages.NO_RUNS in (tmp_path / "page.md").read_text()


def test_a_place_for_what_no_run_is_of_is_said(
    short: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- table switches: vgg16 on CIFAR-10 (JPEG), 4 + 2 epochs -->\n<!-- end -->\n"
    )
    main([str(short), "--fill", str(page)])
    said = "page.md, line 1: no run of this kind for vgg16 on CIFAR-10 (JPEG), 4 + 2 epochs"
    assert said in capsys.readouterr().err
    page.write_text("<!-- table switches: vgg16 on CIFAR-10 (JPEG) -->\n<!-- end -->\n")
    main([str(short), "--fill", str(page)])
    assert not capsys.readouterr().err


def test_two_drawings_of_one_name_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for name, accuracy in (("CIFAR-10", 0.8), ("CIFAR 10", 0.7)):
        settings = (SHORT, f"data.root={tmp_path}", f"data.name={name}")
        pruned_from(composed_run(tmp_path / name, *settings, test_acc=accuracy), PRUNE)
    page = tmp_path / "page.md"
    page.write_text("<!-- figure curves -->\n<!-- end -->\n")
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--fill", str(page)])
    assert "two drawings would be after_fine" in capsys.readouterr().err


def test_nothing_is_stored_upon_itself(tmp_path: Path) -> None:
    trained_run(tmp_path / "t")
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--store", str(tmp_path)])
