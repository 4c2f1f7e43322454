"""A directory that holds a run: refused, resumed, overwritten; one run at a time writes there."""

import shutil
from collections.abc import Callable
from datetime import datetime, tzinfo
from pathlib import Path

import pytest
import yaml
from child_processes import SHORT_RUN, start
from conftest import SHORT
from filelock import FileLock
from left_by_runs import ALLOW, appear, files, stop_after, summary

import rni_pl
from rni_pl.config import own_directory
from rni_pl.errors import ConfigError
from rni_pl.runs.files import whole, write_whole

START = ("arch=resnet20", "data=digits", *SHORT)
LONGER = (*START, "trainer.max_epochs=2", "hydra.run.dir=run")


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A finished run of its own."""
    return shutil.copytree(trained, tmp_path / "run")


def test_a_run_there_is_refused(command: Callable, run: Path) -> None:
    before = files(run)
    for name, given in (("train", START), ("prune", (f"checkpoint={run}", *SHORT[1:]))):
        refused = command(name, *given, f"hydra.run.dir={run}")
        assert refused.status == 2
        for way in (f"resume={run}", "resume=auto", "overwrite=true"):
            assert way in refused.err
    with pytest.raises(ConfigError, match="overwrite=true"):
        rni_pl.train("digits", "resnet20", epochs=0, run_dir=run)
    assert files(run) == before


def test_overwriting_deletes_what_a_run_writes_and_nothing_else(
    command: Callable, run: Path
) -> None:
    for name in ("failure.json", "notes.txt", "checkpoints/mine.ckpt", "plots/one.png"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("{}")
    old = {name for name in files(run) if name.startswith("events")}
    done = command("train", *START, "seed=1", "overwrite=true", f"hydra.run.dir={run}")
    assert done.status == 0, done.err
    assert summary(run)["seed"] == 1
    left = files(run).keys()
    assert {"notes.txt", "checkpoints/mine.ckpt", "plots/one.png"} <= left
    assert not old & left
    assert "failure.json" not in left
    rni_pl.train("digits", "resnet20", epochs=0, run_dir=run, overrides=["overwrite=true"])
    assert summary(run)["epochs"] == 0


@pytest.mark.parametrize(
    "mistake",
    [
        "optimizer.lr=0",
        "data.val_fraction=0.0001",
        "arch._target_=math.sqrt",
        "trainer.precision=3",
    ],
)
def test_nothing_is_deleted_for_a_run_that_cannot_begin(
    command: Callable, run: Path, mistake: str
) -> None:
    before = files(run)
    refused = command("train", *START, mistake, "overwrite=true", f"hydra.run.dir={run}")
    assert refused.status == 2
    assert files(run) == before


def test_a_network_is_not_pruned_over_itself(command: Callable, run: Path) -> None:
    before = files(run)
    for given in (run, run / "checkpoints" / "best.ckpt"):
        place = (f"hydra.run.dir={run}", "overwrite=true")
        refused = command("prune", f"checkpoint={given}", *place, *SHORT[1:])
        assert refused.status == 2
        assert "give another hydra.run.dir" in refused.err
    assert files(run) == before


def test_auto_begins_goes_on_and_skips(command: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """One command, as a queue starts it again and again."""
    with monkeypatch.context() as patch:
        stop_after(patch)
        assert "interrupted" in command("train", *LONGER, "resume=auto").err
    went_on = command("train", *LONGER, "resume=auto")
    assert went_on.status == 0, went_on.err
    assert "epoch 2 of 2" in went_on.out
    assert "epoch 1 of 2" not in went_on.out
    before = files("run")
    assert "is finished: skipped" in command("train", *LONGER, "resume=auto").out
    other = command("train", *LONGER, "resume=auto", "method.reg_weight=0.01")
    assert other.status == 2
    assert "holds a run of another configuration (method.reg_weight=0.0001 there)" in other.err
    assert files("run") == before


@pytest.mark.parametrize("damage", ["config", "summary"])
def test_damaged_files_are_not_gone_on_with(
    command: Callable, trained: Path, run: Path, damage: str
) -> None:
    name = {"config": "config.yaml", "summary": "summary.json"}[damage]
    (run / name).write_text('{"dataset": "dig')
    root = yaml.safe_load((trained / "config.yaml").read_text())["data"]["root"]
    start = (*START, f"data.root={root}", "resume=auto", f"hydra.run.dir={run}")
    refused = command("train", *start)
    assert refused.status == 2
    assert {"config": "no sound config.yaml", "summary": "summary.json is damaged"}[damage] in (
        refused.err
    )


def test_a_finished_run_that_goes_on_is_not_finished(
    command: Callable, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, epochs=2)
        assert "interrupted" in command("train", f"resume={run}", "trainer.max_epochs=4").err
    assert not (run / "summary.json").exists()
    assert command("train", f"resume={run}").status == 0
    assert summary(run)["epochs"] == 4


def test_a_mistake_before_the_first_step_leaves_nothing(command: Callable) -> None:
    failed = command("train", *START, "trainer.max_time=00:00:00:00", "hydra.run.dir=deep/run")
    assert failed.status == 2
    assert "before its first validation" in failed.err
    assert not Path("deep").exists()


def test_a_directory_is_locked_while_a_run_writes(command: Callable, run: Path) -> None:
    before = files(run)
    with FileLock(run / ".lock"):
        for given in (f"resume={run}",), (*START, f"hydra.run.dir={run}", "overwrite=true"):
            refused = command("train", *given)
            assert refused.status == 2
            assert f"another run is writing into {run}" in refused.err
    assert files(run) == before


def test_two_commands_at_once(work: Path) -> None:
    arguments = (*SHORT_RUN, "trainer.max_epochs=400", "hydra.run.dir=busy")
    first = start(work, "train", *arguments)
    appear(work / "busy" / "checkpoints" / "last.ckpt")
    second = start(work, "train", "resume=busy", ALLOW)
    second.join(60)
    assert second.exitcode == 2
    assert "another run is writing into busy" in (work / "out").read_text()
    assert first.is_alive()
    first.kill()
    first.join()
    FileLock(work / "busy" / ".lock").acquire(timeout=0)  # a kill leaves none


def test_a_network_that_was_trained_anew_is_not_passed_over(
    command: Callable, run: Path, tmp_path: Path
) -> None:
    start = (*SHORT[1:], "trainer.max_epochs=0", "resume=auto", "hydra.run.dir=small")
    assert command("prune", f"checkpoint={run}", *start).status == 0
    moved = shutil.copytree(run, tmp_path / "moved")
    for same in (run, run / "checkpoints" / "best.ckpt", moved):
        again = command("prune", f"checkpoint={same}", *start)
        assert "small is finished: skipped" in again.out, again.err
    before = files("small")
    anew = command("train", *START, "seed=5", "overwrite=true", f"hydra.run.dir={run}")
    assert anew.status == 0, anew.err
    refused = command("prune", f"checkpoint={run}", *start)
    assert refused.status == 2
    assert f"other weights than checkpoint={run} has now" in refused.err
    assert files("small") == before
    Path("small/checkpoint.sha256").unlink()  # as where no weights are known
    assert "of another configuration (checkpoint=" in (
        command("prune", f"checkpoint={moved}", *start).err
    )


def test_experiments_are_skipped_where_finished(command: Callable) -> None:
    start = ("experiment=paper", *START)
    assert command("train", *start).status == 0
    assert "skipped" in command("train", *start).out
    assert "of another configuration (optimizer.lr=0.1" in (
        command("train", *start, "optimizer.lr=0.2").err
    )


def test_runs_of_the_same_second_have_directories_of_their_own(
    command: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> "Clock":
            return cls(2030, 1, 1)

    monkeypatch.setattr("hydra.core.utils.datetime", Clock)
    for _ in range(2):
        own_directory.cache_clear()  # another process
        assert command("train", *START, "trainer.max_epochs=0").status == 0
    found = sorted(file.parent.name for file in Path("runs").rglob("summary.json"))
    assert found == ["2030-01-01_00-00-00", "2030-01-01_00-00-00_2"]
    monkeypatch.setenv("WORLD_SIZE", "2")  # processes of one run
    own_directory.cache_clear()
    assert own_directory(str(Path.cwd())) == str(Path.cwd())


def test_home_and_relative_paths(
    command: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    start = ("arch=resnet20", "data=digits", *SHORT, "trainer.max_epochs=0")
    assert command("train", *start, "data.root=mine", "hydra.run.dir=~/run").status == 0
    config = yaml.safe_load((tmp_path / "home/run/config.yaml").read_text())
    assert config["data"]["root"] == str(tmp_path / "mine")
    assert rni_pl.load_model("~/run").model_spec.data["root"] == str(tmp_path / "mine")
    small = ("checkpoint=~/run", *SHORT[1:], "trainer.max_epochs=0")
    assert command("prune", "-m", *small, "hydra.sweep.dir=~/small").status == 0
    assert command("train", "resume=~/run").status == 0
    rni_pl.train("digits", "resnet20", epochs=0, run_dir="~/python", overrides=["data.root=~/d"])
    found = {path.parent.relative_to(tmp_path) for path in tmp_path.rglob("summary.json")}
    assert found == {Path("home/run"), Path("home/small/0"), Path("home/python")}
    assert summary("home/python")["epochs"] == 0
    assert not Path("~").exists()
    Path("mine/launch").mkdir(parents=True)
    Path("mine/launch/there.yaml").write_text(
        "# @package _global_\nhydra: {run: {dir: '~/in_a_file'}}\n"
    )
    refused = command("train", "--config-dir=mine", *start, "launch=there")
    assert "${oc.env:HOME}" in refused.err
    assert not Path("~").exists()


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
