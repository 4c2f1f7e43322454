"""Pruning step by step: the shares, the best epoch, and going on in between."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from left_by_runs import assert_same_end, stop_after, summary
from own_modules import Mine, data, inputs
from pytorch_lightning.callbacks import ModelCheckpoint

from rni_pl import load_model
from rni_pl.callbacks import GradualPruning
from rni_pl.callbacks.gradual_pruning import shares
from rni_pl.errors import ConfigError

STEPS = (
    "prune.ratio=0.8", "prune.steps=3", "prune.epochs_per_step=2", "trainer.max_epochs=6",
    "trainer.limit_train_batches=4", "data.batch_size=16", "trainer.enable_model_summary=false",
)  # fmt: skip


def test_shares() -> None:
    assert shares(0.8, 4) == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert shares(0.75, 2, "geometric") == pytest.approx([0.5, 0.75])


@pytest.mark.parametrize("schedule", ["linear", "geometric"])
@pytest.mark.parametrize("target", ["channels", "macs", "params"])
def test_the_last_step_leaves_what_one_would(
    schedule: str, target: str, command: Callable, trained: Path
) -> None:
    settings = (*STEPS, f"prune.schedule={schedule}", f"prune.target={target}")
    done = command("prune", f"checkpoint={trained}", *settings, "hydra.run.dir=run")
    assert done.status == 0, done.err
    found = summary(Path("run"))
    assert found["ratio"] == 0.8
    removed = 1 - found[f"{target}_pruned"] / found[f"{target}_dense"]
    assert removed == pytest.approx(0.8, abs=0.02)
    assert found["best_epoch"] >= 4, "the best epoch is one of the final network"
    model = load_model("run")
    assert model.get_submodule("layer1.0.bn1").num_features == found["kept"]["layer1.0.bn1"]


class Worse(Mine):
    """What is validated is worse after every epoch."""

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.log("val", float(self.current_epoch))


def test_the_best_checkpoint_is_one_after_the_last_step(tmp_path: Path) -> None:
    best = ModelCheckpoint(tmp_path, monitor="val", mode="min")
    pruning = GradualPruning(0.6, steps=2, every=2, example=inputs)
    fit = pl.Trainer(
        max_epochs=4, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[pruning, best],
    )  # fmt: skip
    fit.fit(Worse(), data(), data())
    assert torch.load(best.best_model_path, weights_only=True)["epoch"] == 2


def test_gradients_are_those_of_each_step(command: Callable, trained: Path) -> None:
    settings = (*STEPS, "prune/importance=taylor", "prune.importance.batches=1")
    done = command("prune", f"checkpoint={trained}", *settings, "hydra.run.dir=run")
    assert done.status == 0, done.err
    found = summary(Path("run"))
    assert 1 - found["channels_pruned"] / found["channels_dense"] == pytest.approx(0.8, abs=0.02)


def test_it_goes_on_in_between(command: Callable, trained: Path) -> None:
    given = (f"checkpoint={trained}", *STEPS)
    assert command("prune", *given, "hydra.run.dir=whole").status == 0
    for epochs in (1, 3, 5):
        run = Path(f"parts{epochs}")
        with pytest.MonkeyPatch.context() as patch:
            stop_after(patch, epochs)
            assert "interrupted" in command("prune", *given, f"hydra.run.dir={run}").err
        done = command("prune", f"resume={run}")
        assert done.status == 0, done.err
        assert_same_end(run, Path("whole"), killed=True)
        one, other = (json.loads((Path(p) / "summary.json").read_text()) for p in (run, "whole"))
        different = {key for key in one if one[key] != other[key]}
        assert different <= {"seconds"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("prune.steps=0",), "prune.steps=0 is not allowed"),
        (("prune.schedule=cubic",), "prune.schedule='cubic' is not allowed"),
        (("prune.steps=4", "trainer.max_epochs=3"), "the last step comes after 3 epochs"),
        (("prune.steps=4", "prune.ratio=auto"), "prune.steps=4 needs prune.ratio as a number"),
    ],
)
def test_what_cannot_be_is_refused(
    settings: tuple[str, ...], message: str, command: Callable
) -> None:
    done = command("prune", "checkpoint=x", *settings)
    assert done.status == 2
    assert message in done.err


def test_the_callback_says_so_too() -> None:
    with pytest.raises(ConfigError, match="allowed: numbers >= 1, linear or geometric"):
        GradualPruning(0.5, steps=0)
