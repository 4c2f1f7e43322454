"""Pruning in anybody's LightningModule: optimisers go on, and checkpoints load."""

import copy
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from masking import randomise
from own_modules import Mine, TwoInputs, data, inputs, loss_of, trainer
from pytorch_lightning.callbacks import EMAWeightAveraging
from torch import Tensor, nn

from rni_pl.callbacks import OneShotPruning, SparsityRegulariser
from rni_pl.errors import PruningError
from rni_pl.norm import scaled_norms
from rni_pl.pruning import prune, prune_in_place
from rni_pl.regularisers import L1


def pruning(**settings: Any) -> OneShotPruning:
    return OneShotPruning(0.5, **{"at_epoch": 1, "example": inputs, **settings})


class Watch(pl.Callback):
    """Notes optimiser and network right before and after the cut, which other callbacks make."""

    def __init__(self) -> None:
        self.notes: list[Any] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, i: int) -> None:
        if trainer.current_epoch == 1 and i == 0:
            names = {p: name for name, p in pl_module.model.named_parameters()}
            state = trainer.optimizers[0].state
            moments = {names[p]: {k: v.clone() for k, v in s.items()} for p, s in state.items()}
            self.notes.append((copy.deepcopy(pl_module.model), moments, batch))


@pytest.mark.parametrize("optimizer", ["AdamW", "SGD", "Adagrad"])
def test_in_the_middle_of_training(optimizer: str, tmp_path: Path) -> None:
    """Moments of kept channels are the same to the bit; the loss is the masked network's."""
    module, before, after = Mine(optimizer), Watch(), Watch()
    callback = pruning()
    objects = list(module.model.parameters())
    regulariser = SparsityRegulariser(L1(1e-3))
    fit = trainer(tmp_path, regulariser, before, callback, after, accumulate_grad_batches=2)
    fit.fit(module, data())
    assert [p is q for p, q in zip(module.model.parameters(), objects, strict=True)]
    (dense, moments, batch), (small, kept_moments, _) = before.notes[0], after.notes[0]
    report = callback.report
    assert report is not None
    assert report.channels_pruned == report.channels_dense // 2
    expected = prune(dense, inputs(batch), 0.5)[0]
    for key, value in expected.state_dict().items():
        assert torch.equal(value, small.state_dict()[key]), key
    rows = {"stem.0": "stem.1", "stem.1": "stem.1", "body.0": "body.1", "body.1": "body.1"}
    assert kept_moments.keys() == moments.keys()
    for name, state in moments.items():
        layer, _, kind = name.rpartition(".")
        for key, value in state.items():
            if value.ndim and layer in rows:
                value = value[report.kept[rows[layer]]]
            reads = {"body.0": "stem.1", "mask": "body.1"}.get(layer)
            if value.ndim > 1 and reads and kind == "weight":
                value = value[:, report.kept[reads]]
            if name not in ("label.weight", "aside.weight", "aside.bias"):
                assert torch.equal(kept_moments[name][key], value), (name, key)
    masked = copy.deepcopy(dense).eval()
    for name, norm in scaled_norms(masked):
        gone = [c for c in range(norm.num_features) if c not in report.kept[name]]
        norm.weight.data[gone], norm.bias.data[gone] = 0.0, 0.0
    with torch.no_grad():
        assert float(loss_of(small.eval(), batch)) == pytest.approx(
            float(loss_of(masked, batch)), rel=1e-5
        )
    assert fit.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.01 * 0.5**3)


@pytest.mark.parametrize("at_epoch", [0, 1])
@pytest.mark.parametrize("averaged", [False, True])
def test_a_run_goes_on_after_the_cut_bit_for_bit(
    at_epoch: int, averaged: bool, tmp_path: Path
) -> None:
    def callbacks() -> list[Any]:
        average = [EMAWeightAveraging(decay=0.9)] if averaged else []
        return [*average, pruning(at_epoch=at_epoch)]

    class Save(pl.Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == 1:
                trainer.save_checkpoint(tmp_path / "half.ckpt")

    whole = Mine()
    trainer(tmp_path, *callbacks(), Save(), epochs=4).fit(whole, data())
    torch.load(tmp_path / "half.ckpt", weights_only=True)
    resumed = Mine()
    trainer(tmp_path, *callbacks(), epochs=4).fit(
        resumed, data(), ckpt_path=tmp_path / "half.ckpt", weights_only=True
    )
    assert resumed.steps == whole.steps[8:]
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


def test_a_checkpoint_is_tested_and_loaded(tmp_path: Path) -> None:
    module = Mine()
    fit = trainer(tmp_path, pruning())
    fit.fit(module, data())
    fit.save_checkpoint(tmp_path / "pruned.ckpt")
    (found,) = fit.validate(module, data(), verbose=False)
    other = trainer(tmp_path, pruning())
    assert other.validate(
        Mine(), data(), ckpt_path=tmp_path / "pruned.ckpt", verbose=False, weights_only=True
    ) == [found]

    class Loads(Mine):
        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            OneShotPruning.resize(self.model, checkpoint)

    loaded = Loads.load_from_checkpoint(tmp_path / "pruned.ckpt", weights_only=True)
    batch = next(iter(data()))
    with torch.no_grad():
        assert torch.equal(loss_of(loaded.model.eval(), batch), loss_of(module.model.eval(), batch))
    with pytest.raises(RuntimeError, match="size mismatch"):
        Mine.load_from_checkpoint(tmp_path / "pruned.ckpt", weights_only=True)


def test_state_of_another_shape_is_refused_and_nothing_changed() -> None:
    model, x = randomise(TwoInputs()), (torch.randn(2, 3, 8, 8), torch.randn(2, 5))
    optimizer = torch.optim.Adafactor(model.parameters())
    model(*x)["mask"].sum().backward()
    optimizer.step()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(PruningError, match="Adafactor keeps row_var of shape"):
        prune_in_place(model, x, 0.5, optimizers=[optimizer])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


class Itself(pl.LightningModule):
    """The module is the network, and says what it takes."""

    def __init__(self) -> None:
        super().__init__()
        self.features = randomise(
            nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
        )
        self.example_input_array = torch.zeros(2, 3, 8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch["image"]).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters())


def test_two_networks_of_one_module(tmp_path: Path) -> None:
    """Each callback gives its own network its sizes."""

    class Pair(Itself):
        def __init__(self) -> None:
            super().__init__()
            self.other = randomise(
                nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 1))
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.other(self.features(x))

    def callbacks() -> list[Any]:
        one = OneShotPruning(0.5, network="features", example=torch.zeros(2, 3, 8, 8))
        other = OneShotPruning(
            0.5, at_epoch=1, network="other", example=torch.zeros(2, 4, 4, 4),
            options={"min_channels": 1},
        )  # fmt: skip
        return [one, other]

    module = Pair()
    fit = trainer(tmp_path, *callbacks(), epochs=2)
    fit.fit(module, data())
    fit.save_checkpoint(tmp_path / "pair.ckpt")
    again = Pair()
    trainer(tmp_path, *callbacks(), epochs=3).fit(
        again, data(), ckpt_path=tmp_path / "pair.ckpt", weights_only=True
    )
    assert (again.features[0].out_channels, again.other[0].out_channels) == (4, 3)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_the_module_itself(precision: str, tmp_path: Path) -> None:
    module = Itself()
    fit = trainer(tmp_path, OneShotPruning(0.5), epochs=1, precision=precision)
    fit.fit(module, data())
    assert module.features[0].out_channels == module.features[3].in_channels == 4
    assert module.trainer is fit


def test_options_are_those_of_pruning(tmp_path: Path) -> None:
    callback = pruning(at_epoch=0, options={"ignore": ["stem"], "importance": "l2"})
    module = Mine()
    trainer(tmp_path, callback, epochs=1).fit(module, data())
    assert module.model.stem[0].out_channels == 16
    assert module.model.body[0].out_channels < 16


def two_processes(rank: int, folder: Path, port: int) -> None:
    import os

    os.environ.update(
        MASTER_ADDR="localhost", MASTER_PORT=str(port), WORLD_SIZE="2", LOCAL_RANK=str(rank),
        RANK=str(rank), NODE_RANK="0",
    )  # fmt: skip
    torch.set_num_threads(1)
    torch.manual_seed(0)
    module = Mine()
    fit = trainer(folder, pruning(), strategy="ddp", devices=2, epochs=2)
    fit.fit(module, data())
    torch.save((module.state_dict(), module.steps), folder / f"{rank}.pt")


def test_two_processes_prune_alike_and_go_on(tmp_path: Path) -> None:
    import socket

    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    ranks = [context.Process(target=two_processes, args=(r, tmp_path, port)) for r in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(200)
        assert process.exitcode == 0
    (one, losses), (other, others) = (torch.load(tmp_path / f"{r}.pt") for r in range(2))
    assert one["model.stem.0.weight"].size(0) < 16
    for key, value in one.items():
        if "running" not in key and "num_batches" not in key:
            assert torch.equal(value, other[key]), key
    assert losses != others
