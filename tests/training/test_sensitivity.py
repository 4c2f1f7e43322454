"""How much accuracy each layer is worth, and feeding the ratios that come of it back."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from masking import randomise
from torch import nn

from rni_pl import models
from rni_pl.callbacks.tensorboard import sensitivity_image
from rni_pl.errors import PruningError
from rni_pl.pruning import prune
from rni_pl.pruning.sensitivity import Sensitivity, sensitivity

X = torch.zeros(1, 3, 32, 32)


def test_each_layer_is_pruned_by_itself() -> None:
    """Evaluated by what is left of it."""
    model = randomise(models.resnet20())
    seen: list[nn.Module] = []

    def parameters(network: nn.Module) -> float:
        seen.append(network)
        return float(sum(p.numel() for p in network.parameters()))

    found = sensitivity(model, X, parameters, [0.25, 0.75])
    assert seen[0] is model
    assert list(found.accuracy)[:2] == ["layer1.0.bn1", "layer1.1.bn1"]
    for name in ("layer1.0.bn1", "layer3.2.bn1"):
        for ratio in (0.25, 0.75):
            alone = prune(model, X, 0.0, ratios={name: ratio})[0]
            assert found.accuracy[name][ratio] == parameters(alone)
    assert len(found.accuracy) == 9


def test_ratios_that_a_loss_allows() -> None:
    curves = {"a": {0.1: 0.9, 0.5: 0.88, 0.9: 0.5}, "b": {0.1: 0.7, 0.5: 0.9}}
    found = Sensitivity(0.9, curves)
    assert found.ratios(0.02) == {"a": 0.5, "b": 0.0}
    assert found.ratios(0.5) == {"a": 0.9, "b": 0.5}
    assert str(found).splitlines()[1].split() == ["a", "90.00%", "88.00%", "50.00%"]
    with pytest.raises(PruningError, match="nothing to prune"):
        sensitivity(nn.Sequential(nn.Conv2d(3, 4, 1)), X, lambda network: 1.0)


def test_the_picture_is_dark_where_accuracy_is_lost() -> None:
    picture = sensitivity_image({"a": [(0.5, 0.9), (0.9, 0.0)]}, 0.9)
    row = picture[16 + 3, :, 0].astype(int)
    assert row[-44 + 3] < 100 < 250 < row[-88 + 3]


def test_the_command(command: Callable, trained: Path) -> None:
    shutil.copytree(trained, "run")
    settings = ("checkpoint=run", "ratios=[0.3,0.6]", "max_drop=0.5", "share=0.5")
    done = command("sensitivity", *settings)
    assert done.status == 0, done.err
    found = json.loads(Path("run/sensitivity.json").read_text())
    assert len(found["accuracy"]) == 9
    (given,) = re.findall(r"'(prune\.ratios=.*)'", done.out)
    few = ("trainer.max_epochs=1", "trainer.limit_train_batches=3", "data.batch_size=16")
    done = command("prune", "checkpoint=run", given, "prune.ratio=0", *few, "hydra.run.dir=small")
    assert done.status == 0, done.err
    kept = json.loads(Path("small/summary.json").read_text())["kept"]
    for name, ratio in found["ratios"].items():
        width = {"layer1": 16, "layer2": 32, "layer3": 64}[name[:6]]
        assert kept[name] == pytest.approx((1 - ratio) * width, abs=1)


@pytest.mark.parametrize("setting", ["ratios=[1]", "ratios=[]", "share=0", "max_drop=-1"])
def test_what_cannot_be_is_refused(setting: str, command: Callable) -> None:
    done = command("sensitivity", "checkpoint=x", setting)
    assert done.status == 2
    assert setting.partition("=")[0] in done.err
