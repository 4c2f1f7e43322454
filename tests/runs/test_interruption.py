"""Runs that are killed or interrupted go on as if nothing had happened."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from child_processes import SHORT_RUN, finish, start
from conftest import ROOT, SHORT
from left_by_runs import ALLOW, DENSE, appear, assert_same_end, contents
from omegaconf.errors import OmegaConfBaseException
from tensorboard.summary.writer import event_file_writer

from rni_pl.callbacks import StopOnSignal


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["train", "prune"])
@pytest.mark.parametrize("since", ["begun", "saved"])
def test_killed_at_random_moments(work: Path, stage: str, since: str) -> None:
    """Ten kills each: from when the run has a directory, and from its first checkpoint on."""
    arguments = DENSE if stage == "prune" else SHORT_RUN
    whole = work / f"{stage}_{since}_whole"
    sign = Path() if since == "begun" else Path("checkpoints", "last.ckpt")
    child = start(work, stage, *arguments, f"hydra.run.dir={whole}")
    begun = appear(whole / sign)
    child.join()
    took = time.monotonic() - begun
    moments = random.Random(0)
    killed = 0
    for number in range(40):
        run_dir = work / f"{stage}_{since}_{number}"
        child = start(work, stage, *arguments, f"hydra.run.dir={run_dir}")
        begun = appear(run_dir / sign)
        child.join(took * (killed + moments.random()) / 10)
        child.kill()
        child.join()
        if child.exitcode == 0:  # it was at its end: this time it was faster
            took = 0.9 * (time.monotonic() - begun)
            continue
        assert child.exitcode == -signal.SIGKILL
        killed += 1
        if (run_dir / "config.yaml").exists():
            status, out = finish(work, stage, f"resume={run_dir}", ALLOW)
        else:  # the command had not begun to write
            status, out = finish(work, stage, *arguments, f"hydra.run.dir={run_dir}")
        assert status == 0, out
        assert_same_end(run_dir, whole, killed=True)
        if killed == 10:
            return
    pytest.fail(f"killed {killed} times")


@pytest.mark.parametrize(("stage", "signum"), [("train", signal.SIGTERM), ("prune", signal.SIGINT)])
def test_a_signal_leaves_a_run_that_goes_on(work: Path, stage: str, signum: int) -> None:
    arguments = DENSE if stage == "prune" else SHORT_RUN
    arguments = (*arguments, "trainer.limit_train_batches=60", "trainer.max_epochs=3")
    whole, run_dir = work / f"{stage}_long", work / f"{stage}_interrupted"
    assert finish(work, stage, *arguments, f"hydra.run.dir={whole}")[0] == 0
    (work / "out").unlink()
    child = start(work, stage, *arguments, f"hydra.run.dir={run_dir}")
    appear(run_dir / "checkpoints" / "last.ckpt")
    os.kill(child.pid or 0, signum)
    child.join()
    assert child.exitcode == 128 + signum
    *epochs, last = (work / "out").read_text().splitlines()
    assert last == f"interrupted; go on with resume={run_dir}"
    assert all(line.startswith("epoch ") for line in epochs)
    assert 0 < contents(run_dir)["global_step"] < 180
    assert not (run_dir / "summary.json").exists()
    status, out = finish(work, stage, f"resume={run_dir}", ALLOW)
    assert status == 0, out
    assert_same_end(run_dir, whole)


def test_ctrl_c_in_the_very_script(tmp_path: Path) -> None:
    arguments = ("arch=resnet20", "data=digits", *SHORT[2:], "trainer.max_epochs=99")
    with subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *arguments, "hydra.run.dir=run"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        appear(tmp_path / "run" / "hparams.yaml")
        process.send_signal(signal.SIGINT)
        err = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert err == f"interrupted; go on with resume={tmp_path / 'run'}\n"


def test_a_signal_stops_the_whole_sweep(work: Path) -> None:
    (work / "out").unlink(missing_ok=True)
    child = start(work, "train", "-m", *SHORT_RUN, "seed=1,2,3", "hydra.sweep.dir=sweep",
                  "trainer.max_epochs=200")  # fmt: skip
    appear(work / "sweep" / "seed-1" / "checkpoints" / "last.ckpt")
    os.kill(child.pid or 0, signal.SIGTERM)
    child.join()
    assert child.exitcode == 143
    assert [path.name for path in (work / "sweep").iterdir() if path.is_dir()] == ["seed-1"]
    assert "Traceback" not in (work / "out").read_text()


def test_a_signal_that_a_library_makes_an_error_of(
    command: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As OmegaConf may, where it comes in the middle of its own bookkeeping."""

    def load(*_: Any, **__: Any) -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        except SystemExit as error:
            raise OmegaConfBaseException("no attribute '_invalidate_flags_cache'") from error

    monkeypatch.setattr("rni_pl.training.fitting.make_data", load)
    finished = command("train", *SHORT_RUN, "hydra.run.dir=run")
    assert finished.status == 130
    assert finished.err == "interrupted; nothing was saved yet\n"


def test_before_training_a_signal_leaves_nothing(command: Callable, monkeypatch: Any) -> None:
    from rni_pl.training import fitting

    def interrupted(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(fitting, "make_data", interrupted)
    finished = command("train", *SHORT_RUN)
    assert (finished.status, finished.err) == (143, "interrupted; nothing was saved yet\n")
    assert not Path("runs").exists()


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """`interrupt(7)` sends SIGINT as the seventh step ends."""
    # Runs of one process and second are told apart by a count, and read in the order of names.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(1000))
    original = StopOnSignal.on_train_batch_end

    def at(step: int) -> None:
        def hook(self: StopOnSignal, trainer: Any, *arguments: Any) -> None:
            if trainer.global_step == step:
                os.kill(os.getpid(), signal.SIGINT)
            original(self, trainer, *arguments)

        monkeypatch.setattr(StopOnSignal, "on_train_batch_end", hook)

    return at


@pytest.mark.parametrize(
    ("setting", "steps"),
    [
        ("seed=3", [1, 6, 8]),
        ("trainer.accumulate_grad_batches=4", [3, 4]),  # the second step of an epoch has 2 batches
        ("trainer.check_val_every_n_epoch=2", [7, 12]),
        ("+trainer.val_check_interval=0.5", [3, 8]),
        ("trainer.max_steps=15", [5, 6, 12]),
        ("trainer.limit_train_batches=1.0", [83]),
    ],
)
def test_stops_at_any_step(
    command: Callable, interrupt: Callable, setting: str, steps: list[int]
) -> None:
    settings = (*SHORT_RUN, "trainer.limit_train_batches=6", "trainer.max_epochs=3", setting)
    assert command("train", *settings, "hydra.run.dir=whole").status == 0
    for step in steps:
        run_dir = Path(f"run_{step}")
        interrupt(step)
        assert command("train", *settings, f"hydra.run.dir={run_dir}").status == 130
        at = contents(run_dir)["global_step"]
        assert at == step or setting.endswith("=0.5"), "a validation in the middle comes first"
        interrupt(-1)
        finished = command("train", f"resume={run_dir}", ALLOW)
        assert finished.status == 0, finished.err
        assert_same_end(run_dir, Path("whole"))


def test_a_second_signal_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = StopOnSignal(Path("last.ckpt"))
    stop._note(signal.SIGINT, None)
    stop._note(signal.SIGINT, None)  # of the same keystroke, by way of a parent
    monkeypatch.setattr("rni_pl.callbacks.interruption.AGAIN", -1.0)
    with pytest.raises(SystemExit) as stopped:
        stop._note(signal.SIGINT, None)
    assert stopped.value.code == 130


def test_weights_that_a_run_started_from_are_not_read_again(
    command: Callable, interrupt: Callable, tmp_path: Path
) -> None:
    from rni_pl import models

    torch.save(models.resnet20(10).state_dict(), tmp_path / "start.pt")
    settings = ("arch=resnet20", "method=l1", "init=start.pt", *SHORT_RUN[3:])
    interrupt(2)
    assert command("train", *settings, "hydra.run.dir=run").status == 130
    interrupt(-1)
    (tmp_path / "start.pt").unlink()
    assert command("train", "resume=run").status == 0
