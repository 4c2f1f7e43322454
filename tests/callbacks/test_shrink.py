"""Channels that have receded go while training goes on, as if nothing had happened."""

import copy
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from masking import difference
from own_modules import trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from rni_pl import convert_batchnorm, models
from rni_pl.callbacks import Shrink, SparsityRegulariser
from rni_pl.errors import ConfigError
from rni_pl.norm import scaled_norms
from rni_pl.regularisers import RNI

RECEDED = {"layer1.0.bn1": [1, 4], "layer2.1.bn1": [0, 7, 30], "layer3.0.bn1": [63]}


class Plain(pl.LightningModule):
    def __init__(self, sigbn: bool = True) -> None:
        super().__init__()
        torch.manual_seed(1)
        model = models.resnet20()
        self.model: nn.Module = convert_batchnorm(model) if sigbn else model
        self.losses: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self.model(batch[0]), batch[1])
        self.losses.append(float(loss))
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.01, momentum=0.9)


def planted() -> Plain:
    """Some channels have receded, and stay there."""
    module = Plain()
    norms = dict(scaled_norms(module.model))
    with torch.no_grad():
        for name, channels in RECEDED.items():
            norms[name].weight[channels] = -20.0
    return module


def data() -> DataLoader:
    torch.manual_seed(3)
    images = torch.randn(12, 3, 32, 32)
    return DataLoader(TensorDataset(images, torch.randint(0, 10, (12,))), batch_size=4)


class Plant(pl.Callback):
    """Some channels recede in the first epoch."""

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == 0:
            norms = dict(scaled_norms(pl_module.model))
            with torch.no_grad():
                for name, channels in RECEDED.items():
                    norms[name].weight[channels] = 0.0


class Around(pl.Callback):
    """Copies of the network before the removal and after, of one epoch, and its first step."""

    def __init__(self, epoch: int) -> None:
        self.epoch, self.copies = epoch, list[nn.Module]()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, i: int) -> None:
        if trainer.current_epoch == self.epoch and i == 0:
            self.copies.append(copy.deepcopy(pl_module.model))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, o: Any, batch: Any, i: int) -> None:
        if trainer.current_epoch == self.epoch and i == 0:
            self.copies.append(copy.deepcopy(pl_module.model))


@pytest.mark.parametrize("sigbn", [True, False])
def test_what_has_receded_goes_and_the_network_computes_the_same(
    sigbn: bool, tmp_path: Path
) -> None:
    module, shrink = planted() if sigbn else Plain(sigbn=False), Shrink(below=1e-4)
    before, after = Around(1), Around(1)
    plant = [] if sigbn else [Plant()]
    trainer(tmp_path, *plant, before, shrink, after, epochs=2).fit(module, data())
    assert shrink.report is not None
    for name, channels in RECEDED.items():
        assert len(shrink.gone[name]) == len(channels)
        width = dict(scaled_norms(before.copies[0]))[name].num_features
        assert dict(scaled_norms(module.model))[name].num_features == width - len(channels)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected, found = before.copies[0].eval()(x), after.copies[0].eval()(x)
    assert difference(found, expected) < (1e-5 if sigbn else 1e-4)  # padding has no constant


def test_the_next_step_changes_what_stays_as_it_would_have(tmp_path: Path) -> None:
    one, other = planted(), planted()
    with_it, without = Around(1), Around(1)
    trainer(tmp_path, Shrink(below=1e-4), with_it, epochs=2).fit(one, data())
    trainer(tmp_path, without, epochs=2).fit(other, data())
    small, whole = (dict(each.copies[1].named_parameters()) for each in (with_it, without))
    kept = [c for c in range(16) if c not in RECEDED["layer1.0.bn1"]]
    for name, slices in (
        ("layer1.0.conv1.weight", (kept,)), ("layer1.0.bn1.weight", (kept,)),
        ("layer1.0.conv2.weight", (slice(None), kept)), ("layer1.1.conv1.weight", (slice(None),)),
    ):  # fmt: skip
        assert torch.allclose(small[name], whole[name][slices], rtol=1e-4, atol=1e-6), name


def test_a_threshold_that_is_never_reached_changes_nothing(tmp_path: Path) -> None:
    runs = []
    for callbacks in ([], [Shrink(below=1e-12)]):
        module = Plain()
        regulariser = SparsityRegulariser(RNI(0.01))
        trainer(tmp_path, regulariser, *callbacks).fit(module, data())
        runs.append((module.state_dict(), module.losses))
    assert runs[0][1] == runs[1][1]
    assert all(torch.equal(value, runs[1][0][key]) for key, value in runs[0][0].items())


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_run_goes_on_across_a_removal_bit_for_bit(at: int, tmp_path: Path) -> None:
    class Save(pl.Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == at:
                trainer.save_checkpoint(tmp_path / "part.ckpt")

    whole, resumed = planted(), planted()
    trainer(tmp_path, Shrink(every=2, below=1e-4), Save(), epochs=4).fit(whole, data())
    shrink = Shrink(every=2, below=1e-4)
    trainer(tmp_path, shrink, epochs=4).fit(
        resumed, data(), ckpt_path=tmp_path / "part.ckpt", weights_only=True
    )
    assert resumed.losses == whole.losses[3 * (at + 1) :]
    assert {name: len(each) for name, each in shrink.gone.items()} == {
        name: len(channels) for name, channels in RECEDED.items()
    }
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


def test_patience(tmp_path: Path) -> None:
    module, shrink = planted(), Shrink(below=1e-4, patience=3)
    watch = Around(2)
    trainer(tmp_path, shrink, watch, epochs=4).fit(module, data())
    assert watch.copies[0].layer1[0].conv1.out_channels == 16
    assert module.model.layer1[0].conv1.out_channels == 14


@pytest.mark.parametrize(
    "settings", [{"every": 0}, {"patience": 0}, {"below": 0.0}, {"below": 0.7}], ids=str
)
def test_what_cannot_be_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="is not allowed; allowed: epochs >= 1"):
        Shrink(**settings)
