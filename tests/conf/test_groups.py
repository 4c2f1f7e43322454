"""The groups of conf/ as people who use Hydra expect them: loggers, callbacks, debug."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SHORT
from left_by_runs import stop_after

FEW = ("arch=resnet20", "data=digits", "debug=few_batches", "hydra.run.dir=run")


def test_there_are_few_files() -> None:
    assert len(list((ROOT / "conf").rglob("*.yaml"))) <= 62


@pytest.mark.parametrize(
    ("logger", "events", "rows"),
    [
        ("logger=tensorboard", True, False),
        ("logger=csv", False, True),
        ("logger=[tensorboard,csv]", True, True),
        ("logger=[]", False, False),
    ],
)
def test_a_run_is_logged_where_it_was_asked_to(
    command: Callable, logger: str, events: bool, rows: bool
) -> None:
    done = command("train", *FEW, logger)
    assert done.status == 0, done.err
    assert bool(list(Path("run").glob("events.out.*"))) == events
    metrics = Path("run/csv/version_0/metrics.csv")
    assert metrics.is_file() == rows
    if rows:
        with metrics.open() as lines:
            found = {key for row in csv.DictReader(lines) for key, value in row.items() if value}
        assert found >= {"train/loss", "val/acc", "test/acc", "images_per_second", "lr/weights"}


def test_fine_tuning_is_logged_there_too(command: Callable, trained: Path) -> None:
    few = (f"checkpoint={trained}", "debug=few_batches", "hydra.run.dir=small", "logger=csv")
    assert command("prune", *few).status == 0
    assert Path("small/csv/version_0/metrics.csv").is_file()
    assert not list(Path("small").glob("events.out.*"))


def test_wandb_offline(command: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    done = command("train", *FEW, "logger=wandb", "logger.wandb.offline=true")
    assert done.status == 0, done.err
    assert list(Path("run/wandb").glob("offline-run-*"))


def test_a_logger_whose_package_is_missing_is_named(
    command: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = command("train", *FEW, "logger=csv", "logger.csv._target_=no_such_package.Logger")
    assert done.status == 2
    assert "logger.csv" in done.err
    assert "no_such_package" in done.err
    assert not Path("run").exists()


def test_early_stopping_is_a_choice(command: Callable) -> None:
    settings = ("callbacks=early_stopping", "callbacks.early_stopping.patience=1", *SHORT)
    early = ("+callbacks.early_stopping.min_delta=2", "trainer.max_epochs=6")
    done = command("train", *FEW[:2], FEW[3], *settings, *early)
    assert done.status == 0, done.err
    assert json.loads(Path("run/summary.json").read_text())["epochs"] == 2


def test_without_callbacks_no_learning_rate_is_logged(command: Callable) -> None:
    assert command("train", *FEW, "logger=csv", "callbacks=none").status == 0
    assert "lr/weights" not in Path("run/csv/version_0/metrics.csv").read_text()


def test_a_metric_that_nothing_logs_is_found_before_training(command: Callable) -> None:
    given = ("callbacks=early_stopping", "callbacks.early_stopping.monitor=val/accuracy")
    done = command("train", *FEW, *given)
    assert done.status == 2
    assert "callbacks.early_stopping.monitor=val/accuracy is not logged; allowed: " in done.err
    assert not Path("run").exists()


def test_averaged_weights_are_kept_and_go_on(command: Callable) -> None:
    """What is kept is not what is trained, and a run goes on from the weights that are trained."""
    ema = ("callbacks=ema", "callbacks.ema.decay=0.9", *FEW[:2], *SHORT, "trainer.max_epochs=2")
    done = command("train", *ema, "hydra.run.dir=whole")
    assert done.status == 0, done.err
    whole = torch.load("whole/checkpoints/last.ckpt", weights_only=True)
    kept, trained = whole["state_dict"], whole["current_model_state"]
    assert not torch.equal(kept["model.fc.weight"], trained["model.fc.weight"])
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch)
        assert "interrupted" in command("train", *ema, "hydra.run.dir=parts").err
    done = command("train", "resume=parts")
    assert done.status == 0, done.err
    parts = torch.load("parts/checkpoints/last.ckpt", weights_only=True)
    for part in ("state_dict", "current_model_state"):
        for key, value in whole[part].items():
            assert torch.equal(parts[part][key], value), (part, key)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("scheduler", ["multistep", "cosine", "onecycle"])
def test_optimisers_and_schedules(command: Callable, optimizer: str, scheduler: str) -> None:
    done = command("train", *FEW, f"optimizer={optimizer}", f"scheduler={scheduler}")
    assert done.status == 0, done.err
    state = torch.load("run/checkpoints/last.ckpt", weights_only=True)["optimizer_states"][0]
    moments = {key for values in state["state"].values() for key in values}
    assert moments >= ({"momentum_buffer"} if optimizer == "sgd" else {"exp_avg", "exp_avg_sq"})


def test_an_optimiser_of_ones_own(command: Callable) -> None:
    mine = ("optimizer=adamw", "~optimizer.betas", "optimizer._target_=torch.optim.RMSprop")
    done = command("train", *FEW, *mine)
    assert done.status == 0, done.err
    state = torch.load("run/checkpoints/last.ckpt", weights_only=True)["optimizer_states"][0]
    assert "square_avg" in state["state"][0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("optimizer.momentum=0",), "optimizer: Nesterov momentum requires a momentum"),
        (("+optimizer.foo=1",), "optimizer: "),
        (("scheduler.milestones=[2]",), "scheduler.milestones=[2] is not allowed"),
        (("scheduler.gamma=-1",), "scheduler.gamma=-1 is not allowed"),
        (("scheduler=onecycle", "scheduler.pct_start=3"), "scheduler: "),
        (("loss.class_weights=[1,2]",), "loss.class_weights has 2 numbers, for 10 classes"),
        (("loss.class_weights=[1,-2]",), "loss.class_weights=[1, -2] is not allowed"),
        (("loss.label_smoothing=1",), "loss.label_smoothing=1 is not allowed"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(
    command: Callable, settings: tuple[str, ...], message: str
) -> None:
    done = command("train", *FEW, *settings)
    assert done.status == 2
    assert message in done.err
    assert not Path("run").exists()


def test_few_images_are_learnt_by_heart(command: Callable) -> None:
    few = (*FEW[:2], "debug=overfit", "data.overfit=32", "trainer.max_epochs=2")
    assert command("train", *few, "hydra.run.dir=run").status == 0
    run = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    assert run["callbacks"]["Continuation"]["images"] == [32, 32, 32]


@pytest.mark.parametrize("argument", ["+trainer.callbacks=[]", "+trainer.logger=true"])
def test_what_has_a_group_is_no_argument_of_the_trainer(command: Callable, argument: str) -> None:
    done = command("train", *FEW, argument)
    assert done.status == 2
    assert "is not allowed; give " in done.err
