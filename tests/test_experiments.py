"""The experiment files: cells of the paper's tables, the short budget, and switches."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, SHORT
from made_up_runs import report

from rni_pl.config import compose_config
from rni_pl.errors import ConfigError

PAPERS = {
    ("rni", "vgg16"): (1e-3, 3.0),
    ("rni", "resnet56"): (1e-4, 0.0),
    ("l1", "vgg16"): (1e-4, None),
    ("l1", "resnet56"): (1e-5, None),
    ("ucs", "vgg16"): (None, None),
    ("ucs", "resnet56"): (None, None),
}
RECIPE = {
    "lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4, "sigbn_lr_factor": 10,
    "curve": "steps", "milestones": [0.5, 0.75], "decay": 0.1,
}  # fmt: skip


@pytest.mark.parametrize(("method", "arch"), PAPERS)
@pytest.mark.parametrize("data", ["cifar10", "cifar100"])
def test_a_cell_is_the_papers_recipe(method: str, arch: str, data: str) -> None:
    config = compose_config("train", [f"experiment={data}_{arch}", f"method={method}"])
    assert (config.method.get("reg_weight"), config.method.get("shift")) == PAPERS[method, arch]
    assert config.arch._target_ == f"rni_pl.models.{arch}"
    assert (config.data.name, config.data.val_fraction) == (data, 0)
    assert (config.trainer.max_epochs, config.data.batch_size) == (160, 64)
    assert (config.data.padding, config.data.flip) == (4, True)
    assert config.optimizer == RECIPE


def test_fine_tuning_is_as_long_as_training_and_in_the_same_recipe() -> None:
    config = compose_config("prune", ["checkpoint=x", "experiment=prune_paper"])
    assert (config.trainer.max_epochs, config.data.val_fraction) == (160, 0)
    assert config.optimizer == RECIPE
    assert (config.distill.weight, config.prune.absorb, config.prune.recalibrate) == (0, False, 0)
    assert (config.prune.target, config.prune.coupled, config.prune.min_channels) == (
        "channels", False, 3
    )  # fmt: skip


@pytest.mark.parametrize(("arch", "epochs", "tuning"), [("resnet56", 8, 4), ("vgg16", 4, 2)])
def test_the_short_budget_differs_in_data_and_epochs_alone(
    arch: str, epochs: int, tuning: int
) -> None:
    cell = compose_config("train", [f"experiment=cifar10_{arch}"])
    short = compose_config("train", [f"experiment=short_{arch}"])
    assert short.trainer.max_epochs == epochs
    assert short.data.name == "CIFAR-10 (JPEG)"
    assert (short.data.mean, short.data.std) == (cell.data.mean, cell.data.std)
    for key in ("batch_size", "val_fraction", "padding", "flip"):
        assert short.data[key] == cell.data[key]
    for group in ("arch", "method", "optimizer"):
        assert short[group] == cell[group]
    others = compose_config("train", [f"experiment=short_{arch}", "data=cifar100"]).data
    assert (others.name, others.mean) != (short.data.name, short.data.mean)
    pruning = compose_config("prune", ["checkpoint=x", f"experiment=prune_short_{arch}"])
    assert (pruning.trainer.max_epochs, pruning.prune.ratio) == (tuning, 0.9)


@pytest.mark.parametrize("arch", ["resnet56", "vgg16", "vgg16_8_epochs"])
@pytest.mark.parametrize("method", ["rni", "l1", "polarization"])
def test_penalties_are_scaled_as_the_schedule_is_shortened(arch: str, method: str) -> None:
    plain, scaled = (
        compose_config("train", [f"experiment=short_{arch}{kind}", f"method={method}"])
        for kind in ("", "_scaled")
    )
    factor = 160 / plain.trainer.max_epochs
    assert scaled.method.reg_weight == pytest.approx(factor * plain.method.reg_weight)
    rest = ("_target_", "shift", "t")
    assert [scaled.method.get(key) for key in rest] == [plain.method.get(key) for key in rest]


def test_ucs_has_nothing_to_scale() -> None:
    config = compose_config("train", ["experiment=short_vgg16_scaled", "method=ucs"])
    assert "reg_weight" not in config.method


def test_every_switch_changes_something() -> None:
    plain = compose_config("prune", ["checkpoint=x", "experiment=prune_paper"])
    for file in sorted((ROOT / "conf" / "switch").glob("*.yaml")):
        overrides = ["checkpoint=x", "experiment=prune_paper", f"switch={file.stem}"]
        config = compose_config("prune", overrides)
        same = all(config[key] == plain[key] for key in ("prune", "optimizer", "distill"))
        assert same == (file.stem == "plain"), file.stem


@pytest.mark.parametrize("choice", ["experiment=prune_paper", "switch=distill", "switch=absorb"])
def test_what_belongs_to_pruning_is_refused_in_training(choice: str) -> None:
    with pytest.raises(ConfigError, match=r"of prune\.py, not of train\.py"):
        compose_config("train", [choice])


FEW = (*SHORT, "trainer.limit_val_batches=1", "trainer.limit_test_batches=1")


def test_a_sweep_finds_its_places(command: Callable, tmp_path: Path) -> None:
    cell = ("experiment=paper", "arch=resnet20", "data=digits", "method=polarization", "seed=3")
    done = command("train", "-m", *cell, *FEW)
    assert done.status == 0, done.err
    parent = "runs/paper/digits_resnet20_polarization_plain_3"
    settings = ("experiment=prune_paper", "switch=distill", *FEW)
    done = command("prune", "-m", f"checkpoint={parent}", *settings)
    assert done.status == 0, done.err
    small = f"{parent}_0.9_distill_0"
    assert {path.parent for path in tmp_path.rglob("summary.json")} == {
        tmp_path / parent, tmp_path / small
    }  # fmt: skip
    for run in (parent, small):
        assert yaml.safe_load(Path(run, "config.yaml").read_text())["data"]["val_fraction"] == 0
    summary = json.loads(Path(small, "summary.json").read_text())
    assert (summary["method"], summary["scope"], summary["ratio"]) == (
        "polarization",
        "global",
        0.9,
    )
    report(tmp_path / "runs")
    text = (tmp_path / "runs" / "report.md").read_text()
    assert f"{100 * summary['acc_dense']:.2f}" in text
