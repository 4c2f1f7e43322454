"""The experiment files: cells of the paper's tables, and shorter schedules."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import SHORT
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
SGD = {
    "_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1, "momentum": 0.9, "nesterov": True,
    "weight_decay": 1e-4, "sigbn_lr_factor": 10,
}  # fmt: skip
STEPS = {
    "_target_": "rni_pl.training.schedulers.multistep", "_partial_": True,
    "milestones": [0.5, 0.75], "gamma": 0.1,
}  # fmt: skip


@pytest.mark.parametrize(("method", "arch"), PAPERS)
@pytest.mark.parametrize("data", ["cifar10", "cifar100"])
def test_a_cell_is_the_papers_recipe(method: str, arch: str, data: str) -> None:
    cell = [f"data={data}", f"arch={arch}", f"method={method}"]
    config = compose_config("train", ["experiment=paper", *cell])
    assert (config.method.get("reg_weight"), config.method.get("shift")) == PAPERS[method, arch]
    assert config.arch._target_ == f"rni_pl.models.{arch}"
    assert (config.data.name, config.data.val_fraction) == (data, 0)
    assert (config.trainer.max_epochs, config.data.batch_size) == (160, 64)
    assert (config.data.padding, config.data.flip) == (4, True)
    assert (config.optimizer, config.scheduler) == (SGD, STEPS)


def test_fine_tuning_is_as_long_as_training_and_in_the_same_recipe() -> None:
    config = compose_config("prune", ["checkpoint=x", "experiment=prune_paper"])
    assert (config.trainer.max_epochs, config.data.val_fraction) == (160, 0)
    assert (config.optimizer, config.scheduler) == (SGD, STEPS)
    assert (config.distill.weight, config.prune.absorb, config.prune.recalibrate) == (0, False, 0)
    assert (config.prune.target, config.prune.coupled, config.prune.min_channels) == (
        "channels", False, 3
    )  # fmt: skip


@pytest.mark.parametrize("arch", ["resnet20", "vgg16"])
@pytest.mark.parametrize("method", ["rni", "l1", "polarization"])
@pytest.mark.parametrize("factor", [20, 1.6])
def test_one_number_shortens_a_schedule(arch: str, method: str, factor: float) -> None:
    """The epochs are divided by it, and the penalty is multiplied."""
    cell = (f"arch={arch}", f"method={method}")
    plain, short = (compose_config("train", [*cell, f"shorten={by}"]) for by in (1, factor))
    assert short.trainer.max_epochs == round(plain.trainer.max_epochs / factor)
    assert short.method.reg_weight == pytest.approx(factor * plain.method.reg_weight)
    for key in ("_target_", "shift", "t"):
        assert short.method.get(key) == plain.method.get(key)
    pruning = compose_config("prune", ["checkpoint=x", f"shorten={factor}"])
    assert pruning.trainer.max_epochs == short.trainer.max_epochs


def test_networks_that_the_paper_has_not_get_resnet56s_penalty() -> None:
    for arch in ("arch=resnet20", "arch=custom"):
        config = compose_config("train", [arch, "arch._target_=rni_pl.models.resnet20"])
        assert (config.method.reg_weight, config.method.shift) == (1e-4, 0.0)
    config = compose_config("train", ["arch=torchvision", "arch.name=vgg16_bn"])
    assert (config.method.reg_weight, config.method.shift) == (1e-3, 3.0)


@pytest.mark.parametrize("choice", ["experiment=prune_paper", "prune.absorb=true"])
def test_what_belongs_to_pruning_is_refused_in_training(choice: str) -> None:
    with pytest.raises(ConfigError, match=r"of prune\.py, not of train\.py"):
        compose_config("train", [choice])


FEW = (*SHORT, "trainer.limit_val_batches=1", "trainer.limit_test_batches=1")


def test_a_sweep_finds_its_places(command: Callable, tmp_path: Path) -> None:
    cell = ("experiment=paper", "arch=resnet20", "data=digits", "method=polarization", "seed=3")
    done = command("train", "-m", *cell, *FEW)
    assert done.status == 0, done.err
    parent = "runs/paper/digits_resnet20_polarization_1_1_3"
    settings = ("experiment=prune_paper", "distill.weight=0.9", *FEW)
    done = command("prune", "-m", f"checkpoint={parent}", *settings)
    assert done.status == 0, done.err
    small = f"{parent}_0.9_0"
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
