"""What a run shows in TensorBoard, and the files it leaves for a reader."""

import io
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata
from torch.utils.tensorboard import SummaryWriter

import rni_pl
from rni_pl import norm
from rni_pl.callbacks import History, Monitor
from rni_pl.callbacks.checkpoints import BestCheckpoint, LastCheckpoint
from rni_pl.callbacks.tensorboard import (
    KEPT,
    METRICS,
    REMOVED,
    add_hyperparameters,
    final_metrics,
    hyperparameters,
    kept_image,
)
from rni_pl.errors import ConfigError
from rni_pl.training import fitting


def events(run_dir: Path) -> EventAccumulator:
    return EventAccumulator(str(run_dir), size_guidance={"histograms": 0, "images": 0}).Reload()


def summary(run_dir: Path) -> dict:
    return json.loads((run_dir / "summary.json").read_text())


def test_importances_after_every_epoch(trained: Path) -> None:
    found = events(trained)
    model = rni_pl.load_model(trained)  # the only epoch is the best one
    sizes = {name: torch.sigmoid(m.weight).detach() for name, m in norm.scaled_norms(model)}
    wanted = {"all": torch.cat(list(sizes.values())), **sizes}
    assert set(found.Tags()["histograms"]) == {f"importance/{name}" for name in wanted}
    for name, values in wanted.items():
        (event,) = found.Histograms(f"importance/{name}")
        assert event.step == 0
        histogram = event.histogram_value
        assert histogram.num == len(values)
        assert histogram.min == pytest.approx(float(values.min()))
        assert histogram.max == pytest.approx(float(values.max()))
        assert histogram.sum == pytest.approx(float(values.sum()), rel=1e-5)


def test_learning_rates_and_throughput(trained: Path, pruned: Path) -> None:
    found = events(trained)
    assert found.Scalars("lr/weights")[0].value == pytest.approx(0.1)
    assert found.Scalars("lr/scales")[0].value == pytest.approx(1.0)
    (speed,) = found.Scalars("images_per_second")
    assert speed.value == pytest.approx(summary(trained)["images_per_second"], rel=1e-3)
    assert len(events(pruned).Scalars("images_per_second")) == 1


def test_epochs_that_are_not_validated_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two epochs of four seconds and eight images; validation follows the second alone."""
    clock = iter([0.0, 4.0, 10.0, 14.0, 20.0, 20.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    logged: list[float] = []
    module: Any = SimpleNamespace(log=lambda name, value: logged.append(value))
    trainer: Any = SimpleNamespace(
        callbacks=[],
        world_size=2,
        sanity_checking=False,
        current_epoch=1,
        callback_metrics={"val/acc": 0.5},
        val_dataloaders=None,
    )
    history = History()
    for validates in (False, True):
        history.on_train_epoch_start(trainer, module)
        history.on_train_batch_end(trainer, module, None, (None, torch.zeros(4)))
        if validates:
            history.on_validation_start(trainer, module)
            history.on_validation_end(trainer, module)
        history.on_train_epoch_end(trainer, module)
    assert logged == [2.0, 2.0]
    assert history.record.images_per_second == 2.0
    assert (history.record.train_seconds, history.record.seconds) == (8.0, 14.0)


def test_kept_channels_are_shown(pruned: Path) -> None:
    (event,) = events(pruned).Images("kept channels")
    with Image.open(io.BytesIO(event.encoded_image_string)) as picture:
        shown = np.asarray(picture)
    found = summary(pruned)
    assert np.array_equal(shown, kept_image(found["kept"], found["widths"]))


def test_kept_image_draws_to_scale() -> None:
    picture = kept_image(
        {"whole": 64, "half": 32, "small": 4}, {"whole": 64, "half": 64, "small": 16}
    )
    rows = picture.reshape(3, -1, picture.shape[1], 3)
    blue = [(row == KEPT).all(-1).any(0).sum() for row in rows]
    grey = [(row == REMOVED).all(-1).any(0).sum() for row in rows]
    assert blue == [pytest.approx(220 * share, abs=2) for share in (1, 1 / 2, 1 / 16)]
    assert grey == [pytest.approx(220 * share, abs=2) for share in (0, 1 / 2, 3 / 16)]


def row(run_dir: Path) -> dict:
    content = events(run_dir).PluginTagToContent("hparams")[metadata.SESSION_START_INFO_TAG]
    values = metadata.parse_session_start_info_plugin_data(content).hparams
    return {key: getattr(value, str(value.WhichOneof("kind"))) for key, value in values.items()}


def test_a_sweep_reads_as_a_table(trained: Path, pruned: Path) -> None:
    for run in (trained, pruned):  # columns that one run announced would count for all
        assert metadata.EXPERIMENT_TAG not in events(run).PluginTagToContent("hparams")
    dense, small = row(trained), row(pruned)
    assert (dense["method"], dense["reg_weight"], dense["seed"]) == ("rni", 1e-4, 0)
    assert (small["ratio"], small["scope"], small["lr"]) == (0.5, "global", 0.1)
    assert "ratio" not in dense
    scalars, found = events(pruned), summary(pruned)
    shown = {key: scalars.Scalars(f"summary/{key}")[0].value for key in METRICS}
    wanted = {key: found[key] for key in METRICS[:3]}
    wanted |= {"params": found["params_pruned"], "macs": found["macs_pruned"]}
    assert shown == pytest.approx(wanted)
    assert events(trained).Scalars("summary/acc_dense")[0].value == pytest.approx(
        summary(trained)["test_acc"]
    )


def test_settings_of_ones_own_methods_are_shown(tmp_path: Path) -> None:
    config = OmegaConf.create(
        {
            "method": {"_target_": "mine.Hoyer", "power": 2, "layers": ["bn1"]},
            "optimizer": {"lr": 0.1, "weight_decay": 0.0},
            "data": {"batch_size": 8},
            "trainer": {"max_epochs": 1},
        }
    )
    found = {"method": "hoyer", "test_acc": 0.5, "params": 10, "macs": 20, "seed": 3}
    with SummaryWriter(str(tmp_path)) as writer:
        add_hyperparameters(writer, hyperparameters(config, found), final_metrics(found), 1)
    assert row(tmp_path)["power"] == 2
    assert "_target_" not in row(tmp_path)


def test_ratio_of_a_valley_is_what_it_removed() -> None:
    config = OmegaConf.create(
        {
            "optimizer": {"lr": 0.1, "weight_decay": 0.0},
            "data": {"batch_size": 8},
            "trainer": {"max_epochs": 1},
        }
    )
    found = {"ratio": "auto", "target": "channels", "channels_pruned": 30, "channels_dense": 40}
    assert hyperparameters(config, found)["ratio"] == 0.25


def fake_trainer(rank_zero: bool, tmp_path: Path) -> SimpleNamespace:
    logger = TensorBoardLogger(tmp_path, name="", version="")
    return SimpleNamespace(
        is_global_zero=rank_zero, loggers=[logger], current_epoch=0, callbacks=[]
    )


@pytest.mark.parametrize("rank_zero", [True, False])
def test_only_the_first_process_writes(rank_zero: bool, tmp_path: Path) -> None:
    trainer = fake_trainer(rank_zero, tmp_path)
    Monitor().on_train_epoch_end(trainer, torch.nn.BatchNorm2d(4))  # type: ignore[arg-type]
    assert bool(list(tmp_path.glob("events.*"))) == rank_zero


def test_scales_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(4), torch.nn.BatchNorm2d(2))
    with torch.no_grad():
        model[0].weight[0] = float("nan")
        model[1].weight[:] = float("inf")
    trainer = fake_trainer(True, tmp_path)
    Monitor().on_train_epoch_end(trainer, model)  # type: ignore[arg-type]
    trainer.loggers[0].experiment.flush()
    found = events(tmp_path)
    assert set(found.Tags()["histograms"]) == {"importance/all", "importance/0"}
    assert found.Histograms("importance/all")[0].histogram_value.num == 3


def test_why_a_run_failed_is_kept_until_it_goes_on(tmp_path: Path) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory")

    trainer: Any = SimpleNamespace(is_global_zero=True, max_epochs=1, fit=fail)
    failure = tmp_path / "failure.json"
    with pytest.raises(RuntimeError, match="out of memory"):
        fitting.fit(trainer, None, None, tmp_path, None)  # type: ignore[arg-type]
    assert json.loads(failure.read_text()) == {"error": "RuntimeError: out of memory"}
    trainer.fit = lambda *_, **__: None
    trainer.checkpoint_callbacks = [LastCheckpoint(tmp_path), BestCheckpoint(tmp_path)]
    with pytest.raises(ConfigError, match="before its first validation"):
        fitting.fit(trainer, None, None, tmp_path, None)  # type: ignore[arg-type]
    assert not failure.exists()
