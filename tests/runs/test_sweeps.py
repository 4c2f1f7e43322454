"""Sweeps: what runs their jobs, repeating them, and searching."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, SHORT, run_command, run_python
from left_by_runs import stop_after, summary

from rni_pl.config import compose_config
from rni_pl.errors import DataError
from rni_pl.saying import portable
from rni_pl.training import fitting

DIGITS = ("arch=resnet20", "data=digits", "data.root=/data", *SHORT)
SWEEP = ("-m", *DIGITS, "method=rni,l1", "hydra.sweep.dir=sweep")
JOBS = ("method-rni", "method-l1")
TIMES = {"seconds", "images_per_second"}


@pytest.fixture(scope="session")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a serial sweep of two jobs."""
    folder = tmp_path_factory.mktemp("swept")
    assert run_command("train", *SWEEP[:-1], f"hydra.sweep.dir={folder}") == 0
    return folder


@pytest.fixture
def copied(swept: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(swept, tmp_path / "sweep"))


def test_finished_jobs_are_skipped(command: Callable, copied: Path) -> None:
    files = {file: file.stat().st_mtime_ns for job in JOBS for file in (copied / job).rglob("*")}
    (copied / JOBS[1] / "summary.json").unlink()
    shutil.rmtree(copied / JOBS[1] / "checkpoints")  # as if killed before there were any
    with pytest.warns(
        UserWarning, match="method-l1 holds no checkpoint yet: starting from its beginning"
    ):
        finished = command("train", *SWEEP)
    assert finished.status == 0
    assert finished.out.count("is finished: skipped") == 1
    for file, before in files.items():
        if file.is_relative_to(copied / JOBS[0]):
            assert file.stat().st_mtime_ns == before
    assert summary(copied / JOBS[1])["method"] == "l1"


def test_unfinished_jobs_go_on(command: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    longer = ("trainer.max_epochs=2",)
    with monkeypatch.context() as patch:
        stop_after(patch)
        interrupted = command("train", *SWEEP, *longer)
    assert interrupted.status == 2
    assert interrupted.err.count("error: interrupted") == 2  # the second ran all the same
    assert not Path("sweep", JOBS[1], "summary.json").exists()

    started_from: list[Path] = []
    fit = fitting.fit

    def note(*given: Any) -> None:
        started_from.extend(path for path in given if isinstance(path, Path) and path.suffix)
        fit(*given)

    monkeypatch.setattr(fitting, "fit", note)
    resumed = command("train", *SWEEP, *longer)
    assert resumed.status == 0, resumed.err
    last = Path("checkpoints/last.ckpt")
    assert started_from == [Path("sweep").absolute() / job / last for job in JOBS]
    assert [summary(Path("sweep") / job)["epochs"] for job in JOBS] == [2, 2]


def test_another_configuration_is_refused(command: Callable, copied: Path) -> None:
    before = (copied / JOBS[0] / "config.yaml").read_text()
    finished = command("train", *SWEEP, "optimizer.lr=0.05")
    assert finished.status == 2
    assert finished.err.count("error: ") == 2
    assert (
        "sweep/method-rni holds a run of another configuration (optimizer.lr=0.1 there)"
        in finished.err
    )
    assert "overwrite=true" in finished.err
    assert (copied / JOBS[0] / "config.yaml").read_text() == before
    assert summary(copied / JOBS[0])["method"] == "rni"


def test_a_sweep_overwrites_where_asked(command: Callable, copied: Path) -> None:
    again = command("train", *SWEEP, "overwrite=true", "seed=1")
    assert again.status == 0
    assert [summary(copied / job)["seed"] for job in JOBS] == [1, 1]


@pytest.mark.parametrize("given", ["hparams_search=optuna", "launch=joblib"])
def test_what_is_for_sweeps_is_refused_without_one(command: Callable, given: str) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    refused = command("train", *DIGITS, given)
    assert refused.status == 2
    assert "is for sweeps: give -m as well" in refused.err
    assert not Path("runs").exists()


def test_pruning_sweeps_are_repeated_too(command: Callable, trained: Path) -> None:
    shutil.copytree(trained, "dense")
    sweep = ("-m", "checkpoint=dense", "prune.ratio=0.3,0.6", *SHORT, "hydra.sweep.dir=sweep")
    assert command("prune", *sweep).status == 0
    again = command("prune", *sweep)
    assert again.out.count("is finished: skipped") == 2
    moved = command("prune", *sweep[:1], "checkpoint=./dense", *sweep[2:])  # the same by its path
    assert moved.out.count("is finished: skipped") == 2
    copied = command("prune", *sweep[:1], f"checkpoint={trained}", *sweep[2:])  # by its weights
    assert copied.out.count("is finished: skipped") == 2


def test_errors_that_do_not_survive_pickling() -> None:
    class Local(Exception):
        pass

    assert str(portable(Local("no such thing"))) == "Local: no such thing"
    kept = DataError("cat.png is torn")
    assert portable(kept) is kept


@pytest.mark.parametrize("choice", ["joblib", "slurm", "optuna"])
def test_launchers_compose(choice: str) -> None:
    plugin = {"slurm": "submitit"}.get(choice, choice)
    kind = "sweeper" if choice == "optuna" else "launcher"
    pytest.importorskip(f"hydra_plugins.hydra_{plugin}_{kind}")
    group = "hparams_search" if choice == "optuna" else "launch"
    given = compose_config("train", [f"{group}={choice}"])
    assert "launch" not in given
    assert {key for key in given if given[key] != compose_config("train", [])[key]} == {"overrides"}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_launchers_give_what_the_serial_sweep_gives(
    launcher: str, swept: Path, tmp_path: Path
) -> None:
    """And a job that fails in a process of its own is reported, and stops no other."""
    pytest.importorskip(f"hydra_plugins.hydra_{launcher.removesuffix('_local')}_launcher")
    train = (str(ROOT / "train.py"), *SWEEP, f"hydra/launcher={launcher}")
    bad = "data.val_fraction=0.1,0.0001"
    done = run_python(*train, bad, cwd=tmp_path, OMP_NUM_THREADS="1")
    assert done.status == 2
    assert "error: data.val_fraction=0.0001" in done.err
    assert "Traceback" not in done.err
    sweep = tmp_path / "sweep"
    for job in JOBS:
        one, other = summary(swept / job), summary(sweep / f"data.val_fraction-0.1_{job}")
        assert {key for key in one if one[key] != other[key]} <= TIMES
    bad = [f"data.val_fraction-0.0001_{job}" for job in JOBS]
    assert not any((sweep / job / "summary.json").exists() for job in bad)
    theirs = {"multirun.yaml", ".submitit", *bad}
    good = {f"data.val_fraction-0.1_{job}" for job in JOBS}
    assert {path.name for path in sweep.iterdir()} - theirs == good
    assert {path.name for path in tmp_path.iterdir()} == {"sweep"}


MY_FAULTS = """
from pytorch_lightning import Callback

class Fails(Callback):
    def __init__(self, number):
        self.number = number

    def on_fit_start(self, trainer, pl_module):
        class Local(Exception):  # no other process can read it
            pass

        if self.number:
            raise Local("torn")
"""


@pytest.mark.slow
def test_a_fault_in_a_process_of_its_own_is_one_line_and_stops_no_other(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    (tmp_path / "my_faults.py").write_text(MY_FAULTS)
    faulty = "+callbacks.faulty={_target_: my_faults.Fails, number: '${seed}'}"
    done = run_python(
        str(ROOT / "train.py"), "-m", *DIGITS, "seed=1,0", faulty, "launch=joblib",
        "hydra.launcher.n_jobs=2", "hydra.sweep.dir=sweep",
        cwd=tmp_path, OMP_NUM_THREADS="1", PYTHONPATH=f"{ROOT}{os.pathsep}{tmp_path}",
    )  # fmt: skip
    assert done.status == 1
    assert "error: unexpected Local: torn" in done.err
    assert "Traceback" not in done.err
    assert "this makes no configuration" not in done.err
    assert (tmp_path / "sweep" / "seed-0" / "summary.json").is_file()


def test_search_maximises_validation_accuracy(command: Callable) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    search = (
        "-m", *DIGITS, "hparams_search=optuna", "hydra.sweeper.n_trials=3",
        "optimizer.lr=tag(log,interval(0.001,0.1))", "hydra.sweep.dir=sweep",
    )  # fmt: skip
    assert command("train", *search).status == 0
    jobs = [Path("sweep") / str(job) for job in range(3)]
    best = max(jobs, key=lambda job: summary(job)["val_acc"])
    found = yaml.safe_load(Path("sweep/optimization_results.yaml").read_text())
    assert found["best_value"] == summary(best)["val_acc"]
    rates = {yaml.safe_load((job / "config.yaml").read_text())["optimizer"]["lr"] for job in jobs}
    assert len(rates) == 3
    again = command("train", *search)  # the same trials, in the same order
    assert again.out.count("is finished: skipped") == 3
    assert yaml.safe_load(Path("sweep/optimization_results.yaml").read_text()) == found


def test_missing_extras_are_named(command: Callable) -> None:
    finished = command("train", "-m", "hydra/launcher=nosuch", "seed=0,1")
    assert finished.status == 2
    assert "hydra/launcher=nosuch is unknown; allowed: " in finished.err
    assert "docs/many-devices.md" in finished.err
