"""Bars are drawn on a terminal, and nothing of them anywhere else."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, SHORT
from pytorch_lightning.callbacks import ProgressBar, RichProgressBar
from tqdm import tqdm

from rni_pl import cli, config, progress
from rni_pl.callbacks import EpochLines
from rni_pl.training.trainer import make_trainer


def pretend_terminal(patch: pytest.MonkeyPatch) -> None:
    """Let standard output and error pass for a terminal; what is written is captured as before."""
    for stream in (sys.stderr, sys.stdout):
        patch.setattr(stream, "isatty", lambda: True)
    patch.setenv("TERM", "xterm")
    patch.delenv("LOCAL_RANK", raising=False)


def work_long() -> None:
    """Whatever may take long, in one way or another."""
    assert list(progress.track(iter("ab"), "decoding", 2)) == ["a", "b"]
    with progress.busy("loading") as announce:
        announce("timing")
    with progress.others_bars():
        assert list(tqdm("ab", desc="downloading")) == ["a", "b"]


def test_shown_on_a_terminal(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_terminal(monkeypatch)
    work_long()
    captured = capsys.readouterr()
    for word in ("decoding", "timing", "downloading"):
        assert word in captured.err
    assert captured.out == ""


def test_not_shown_elsewhere(capsys: pytest.CaptureFixture) -> None:
    work_long()
    assert capsys.readouterr() == ("", "")


def test_not_shown_by_further_processes(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_terminal(monkeypatch)
    monkeypatch.setenv("LOCAL_RANK", "1")
    work_long()
    assert capsys.readouterr() == ("", "")


def bars_of_the_trainer(run_dir: Path) -> list[type]:
    cfg = config.compose_config("train", ["data=digits"])
    callbacks = make_trainer(cfg, run_dir, []).callbacks
    return [type(callback) for callback in callbacks if isinstance(callback, ProgressBar)]


def test_lightnings_bar_is_off_where_there_is_no_terminal(tmp_path: Path) -> None:
    assert bars_of_the_trainer(tmp_path) == []


def test_lightnings_bar_is_on_on_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_terminal(monkeypatch)
    assert bars_of_the_trainer(tmp_path) == [RichProgressBar]


def lines_of_the_trainer(run_dir: Path, *overrides: str) -> bool:
    cfg = config.compose_config("train", ["data=digits", *overrides])
    return any(isinstance(one, EpochLines) for one in make_trainer(cfg, run_dir, []).callbacks)


def test_lines_are_printed_where_there_is_no_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lines_of_the_trainer(tmp_path)
    assert not lines_of_the_trainer(tmp_path, "trainer.enable_progress_bar=false")
    pretend_terminal(monkeypatch)
    assert not lines_of_the_trainer(tmp_path)


def test_a_line_for_each_epoch_and_one_at_the_end(command: Callable, tmp_path: Path) -> None:
    settings = ("trainer.max_epochs=3", "trainer.check_val_every_n_epoch=2")
    start = ("arch=resnet20", "data=digits", *SHORT[1:], *settings)
    done = command("train", *start, "hydra.run.dir=runs/mine")
    lines = done.out.splitlines()
    loss, took, acc = r"train loss \d+\.\d{4}", r"\d+\.\d s", r"val acc \d+\.\d\d%"
    wanted = [
        f"epoch 1 of 3: {loss}, {took}",
        f"epoch 2 of 3: {loss}, {acc}, {took}",
        f"epoch 3 of 3: {loss}, {took}",
        r"run directory: runs/mine; test accuracy \d+\.\d\d%",
    ]
    assert len(lines) == len(wanted)
    for line, pattern in zip(lines, wanted, strict=True):
        assert re.fullmatch(pattern, line)
    elsewhere = command("prune", "checkpoint=runs/mine", *SHORT, f"hydra.run.dir={tmp_path}/small")
    assert elsewhere.out.splitlines()[-1] == "run directory: small"
    longer = command("train", "resume=runs/mine", "trainer.max_epochs=4")
    assert longer.out.splitlines()[-1].startswith("run directory: runs/mine; test accuracy")


def test_further_processes_say_nothing_at_the_end(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytorch_lightning.utilities.rank_zero_only.rank", 1)
    cli._say_where({"test_acc": 0.5}, Path("run"))
    assert capsys.readouterr().out == ""


EVERY_COMMAND = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[1:]
from conftest import SHORT, run_command
from reader import make_images
from rni_pl.report.__main__ import main as report

make_images(Path("FOLDER"))
run = "hydra.run.dir=runs/dense", "arch=resnet20", "data=image_folder", "data.root=FOLDER"
assert run_command("train", *run, *SHORT) == 0
run = "hydra.run.dir=runs/small", "checkpoint=runs/dense", "prune.recalibrate=2"
assert run_command("prune", *run, "prune.measure_latency=true", *SHORT) == 0
assert run_command("export", "checkpoint=runs/small", "output=model.pt2") == 0
once = "engines=eager", "batch=1", "repeats=1", "threads=1"
assert run_command("benchmark", "checkpoint=runs/small", *once) == 0
report(["runs"])
"""
BARS = [
    "FOLDER/train", "decoding images", "Epoch 0/0", "Testing", "pruning", "recalibrating",
    "timing", "writing model.pt2", "resnet20: eager, batch 1",
    "drawing 2 runs",
]  # fmt: skip


def every_command(directory: Path, output: int) -> None:
    """Run all commands in a process whose output goes to a file descriptor."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "200"}
    command = [
        sys.executable,
        "-c",
        EVERY_COMMAND,
        str(ROOT / "tests"),
        str(ROOT / "tests/helpers"),
    ]
    done = subprocess.run(
        command, cwd=directory, env=environment, stdout=output, stderr=output, timeout=240
    )
    assert done.returncode == 0


@pytest.mark.slow
def test_every_command_on_a_terminal(tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    seen = bytearray()

    def watch() -> None:
        try:
            while part := os.read(ours, 4096):
                seen.extend(part)
        except OSError:  # the other side is closed
            pass

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        every_command(tmp_path, theirs)
    finally:
        os.close(theirs)
        watching.join()
        os.close(ours)
    text = seen.decode()
    assert [bar for bar in BARS if bar not in text] == []


@pytest.mark.slow
def test_every_command_elsewhere(tmp_path: Path) -> None:
    with (tmp_path / "output").open("wb") as output:
        every_command(tmp_path, output.fileno())
    text = (tmp_path / "output").read_text()
    assert "fine-tuned" in text
    assert [bar for bar in BARS if bar in text] == []
    assert "\x1b" not in text
    assert "\r" not in text
