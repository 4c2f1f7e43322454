"""The groups of conf/ as people who use Hydra expect them: loggers, callbacks, debug."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, SHORT

FEW = ("arch=resnet20", "data=digits", "debug=few_batches", "hydra.run.dir=run")


def test_there_are_few_files() -> None:
    assert len(list((ROOT / "conf").rglob("*.yaml"))) <= 50


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


@pytest.mark.parametrize("argument", ["+trainer.callbacks=[]", "+trainer.logger=true"])
def test_what_has_a_group_is_no_argument_of_the_trainer(command: Callable, argument: str) -> None:
    done = command("train", *FEW, argument)
    assert done.status == 2
    assert "is not allowed; give " in done.err
