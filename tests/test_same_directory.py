"""Runs that would meet in one directory, and what others have left there."""

import shutil
from collections.abc import Callable
from datetime import datetime, tzinfo
from pathlib import Path

import pytest
from conftest import SHORT
from test_run_directories import files

from rni_pl.files import own_directory, whole, write_whole
from rni_pl.stages import rundir

START = ("arch=resnet20", "data=digits", *SHORT)


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A finished run of its own."""
    return shutil.copytree(trained, tmp_path / "run")


@pytest.mark.parametrize("moved", ["all", "but checkpoints", "config.yaml"])
def test_a_run_is_back_after_a_kill_of_the_next_and_a_failure(
    command: Callable, run: Path, moved: str
) -> None:
    before, aside = files(run), run / ".replaced"
    if moved == "all":  # the next one had begun
        rundir.set_aside(run, aside)
        for name in ("config.yaml", "hparams.yaml", "events.out.tfevents.1"):
            (run / name).write_text("the next")
    else:  # it was moving files, or moving them back
        aside.mkdir()
        for file in run.glob("*" if moved == "but checkpoints" else moved):
            if file.is_file():
                file.rename(aside / file.name)
    failed = command("train", *START, "trainer.max_time=00:00:00:00", f"hydra.run.dir={run}")
    assert "before its first validation" in failed.err
    assert files(run) == before


def test_runs_of_the_same_second_have_directories_of_their_own(
    command: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> "Clock":
            return cls(2030, 1, 1)

    monkeypatch.setattr("hydra.core.utils.datetime", Clock)
    place = Path("runs/train/digits_resnet20_rni")
    for name in ("2030-01-01_00-00-00", "2030-01-01_00-00-00_2", "2030-01-01_00-00-00_3"):
        own_directory.cache_clear()  # another process
        assert command("train", *START, "trainer.max_epochs=0").status == 0
        assert (place / name / "summary.json").is_file()
    own_directory.cache_clear()
    assert command("train", *START, "trainer.max_steps=1").status == 2
    assert len(list(place.iterdir())) == 3


def test_processes_that_were_started_together_share_a_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for _ in range(2):
        own_directory.cache_clear()
        assert own_directory(str(tmp_path)) == str(tmp_path)


def test_two_that_write_the_same_file(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    with whole(file) as first:
        first.write_text("first")
        write_whole(file, "second")
        assert first.read_text() == "first"
    assert file.read_text() == "first"
    assert list(tmp_path.iterdir()) == [file]


def test_what_a_kill_left_half_written_is_removed(command: Callable, run: Path) -> None:
    halves = [run / ".config.1f.tmp.yaml", run / "checkpoints" / ".last.2e.tmp.ckpt"]
    for half in halves:
        half.write_text("half")
    assert command("train", f"resume={run}").status == 0
    assert not any(half.exists() for half in halves)


def test_a_network_that_was_trained_anew_is_not_passed_over(
    command: Callable, run: Path, tmp_path: Path
) -> None:
    start = (*SHORT[1:], "trainer.max_epochs=0", "existing=continue", "hydra.run.dir=small")
    assert command("prune", f"checkpoint={run}", *start).status == 0
    moved = shutil.copytree(run, tmp_path / "moved")
    for same in (run, run / "checkpoints" / "best.ckpt", moved):
        again = command("prune", f"checkpoint={same}", *start)
        assert "small is finished: skipped" in again.out, again.err
    before = files(Path("small"))
    with pytest.warns(UserWarning, match="which this one replaces"):
        assert command("train", *START, "seed=5", f"hydra.run.dir={run}").status == 0
    refused = command("prune", f"checkpoint={run}", *start)
    assert refused.status == 2
    assert f"other weights than checkpoint={run} has now" in refused.err
    assert files(Path("small")) == before


def test_runs_that_do_not_say_what_weights_they_pruned(
    command: Callable, run: Path, tmp_path: Path
) -> None:
    start = (*SHORT[1:], "trainer.max_epochs=0", "existing=continue", "hydra.run.dir=small")
    assert command("prune", f"checkpoint={run}", *start).status == 0
    Path("small/checkpoint.sha256").unlink()
    assert "skipped" in command("prune", f"checkpoint={run}", *start).out
    moved = run.rename(tmp_path / "moved")
    assert "of another configuration" in command("prune", f"checkpoint={moved}", *start).err
