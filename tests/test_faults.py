"""Runs that are killed, interrupted or out of room go on as if nothing had happened."""

import contextlib
import logging
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from children import SHORT_RUN, finish, start
from conftest import ROOT, SHORT, damages
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from rni_pl import resume
from rni_pl.callbacks import StopOnSignal
from rni_pl.callbacks.checkpoints import WholeCheckpoints
from rni_pl.data.loader import BatchLoader
from rni_pl.errors import CheckpointError, StorageError
from rni_pl.files import write_whole

ALLOW = "allow=[nets.Dropping]"
DENSE = ("checkpoint=dense", *SHORT_RUN[2:])


def contents(run_dir: Path, name: str = "last") -> dict:
    return torch.load(run_dir / "checkpoints" / f"{name}.ckpt", weights_only=True)


def assert_same_end(run_dir: Path, other: Path, killed: bool = False) -> None:
    """Both checkpoints hold the same weights, bit for bit, and the curves are the same.

    What a run logs after its last checkpoint is lost where it is `killed`: points may be missing.
    """
    for name in ("best", "last"):
        one, two = contents(run_dir, name), contents(other, name)
        assert one["global_step"] == two["global_step"]
        assert one["state_dict"].keys() == two["state_dict"].keys()
        for key, value in one["state_dict"].items():
            assert torch.equal(value, two["state_dict"][key]), (name, key)
    found, expected = curves(run_dir), curves(other)
    if killed:
        assert all(set(points) <= set(expected[tag]) for tag, points in found.items())
    else:
        assert found == expected
    assert not list(run_dir.rglob(".*.tmp*"))


def curves(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """All that TensorBoard would draw; of the throughput, which no two runs share, the steps.

    Sorted: files of one second are read in the order of their names, ".10" before ".9".
    """
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    events = EventAccumulator(str(run_dir)).Reload()
    return {
        tag: sorted(
            (point.step, 0.0 if tag == "images_per_second" else point.value)
            for point in events.Scalars(tag)
        )
        for tag in events.Tags()["scalars"]
    }


def appear(path: Path, seconds: float = 60) -> float:
    """Wait for a file or folder; when it was there."""
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"no {path.name}"
        time.sleep(0.001)
    return time.monotonic()


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a trained network in `dense`."""
    folder = tmp_path_factory.mktemp("work")
    assert finish(folder, "train", *SHORT_RUN, "hydra.run.dir=dense")[0] == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["train", "prune"])
def test_killed_at_twenty_moments(work: Path, stage: str) -> None:
    arguments = DENSE if stage == "prune" else SHORT_RUN
    whole = work / f"{stage}_whole"
    child = start(work, stage, *arguments, f"hydra.run.dir={whole}")
    begun = appear(whole)
    child.join()
    took = time.monotonic() - begun
    moments = random.Random(0)
    killed, continued = 0, 0
    for number in range(20):
        run_dir = work / f"{stage}_{number}"
        child = start(work, stage, *arguments, f"hydra.run.dir={run_dir}")
        begun = appear(run_dir)
        child.join(took * (number + moments.random()) / 20)
        child.kill()
        child.join()
        if child.exitcode == 0:  # this time it was faster
            took = 0.9 * (time.monotonic() - begun)
        killed += child.exitcode == -signal.SIGKILL
        continued += (run_dir / "checkpoints" / "last.ckpt").exists()
        if (run_dir / "config.yaml").exists():
            status, out = finish(work, stage, f"resume={run_dir}", ALLOW)
        else:  # the command had not begun to write
            status, out = finish(work, stage, *arguments, f"hydra.run.dir={run_dir}")
        assert status == 0, out
        assert_same_end(run_dir, whole, killed=True)
    assert killed >= 12
    assert continued >= 6


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
    assert (work / "out").read_text() == f"interrupted; go on with resume={run_dir}\n"
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
    appear(work / "sweep" / "0" / "checkpoints" / "last.ckpt")
    os.kill(child.pid or 0, signal.SIGTERM)
    child.join()
    assert child.exitcode == 143
    assert [path.name for path in (work / "sweep").iterdir() if path.is_dir()] == ["0"]
    assert "Traceback" not in (work / "out").read_text()


def test_before_training_a_signal_leaves_nothing(command: Callable, monkeypatch: Any) -> None:
    from rni_pl import runs

    def interrupted(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(runs, "make_data", interrupted)
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


def test_batches_of_an_interrupted_epoch() -> None:
    from test_data import MEAN, STD, labels, split

    from rni_pl.data import Augment

    def loader() -> BatchLoader:
        return BatchLoader(split(20), 4, MEAN, STD, Augment(4))

    whole, resumed = loader(), loader()
    resumed.load_state_dict({"epoch": 3, "done": 2})
    assert labels(resumed, 2) == labels(whole, 2)
    assert labels(resumed, 3) == labels(whole, 3)[8:]
    assert labels(resumed, 4) == labels(whole, 4)


@pytest.mark.parametrize("how", ["damaged", "empty", "missing", "older"])
def test_best_stands_in_for_last(work: Path, how: str) -> None:
    run_dir = work / how
    shutil.copytree(work / "dense", run_dir)
    last = run_dir / "checkpoints" / "last.ckpt"
    if how == "damaged":
        last.write_bytes(last.read_bytes()[:9000])
    elif how == "empty":
        last.write_bytes(b"")
    elif how == "missing":
        last.unlink()
    else:  # killed between the two
        torch.save({**contents(run_dir), "global_step": 1, "state_dict": {}}, last)
    status, out = finish(work, "train", f"resume={how}", ALLOW)
    assert status == 0, out
    said = re.search(
        r"warning: resume=.*last\.ckpt .*; going on from best\.ckpt, of step \d+\n", out
    )
    assert bool(said) == (how in ("damaged", "empty"))
    for name in ("best", "last"):
        one, two = contents(run_dir, name), contents(work / "dense", name)
        assert all(torch.equal(one["state_dict"][k], v) for k, v in two["state_dict"].items())


def test_a_lost_best_epoch_is_said(command: Callable, work: Path) -> None:
    shutil.copytree(work / "dense", "run")
    best = Path("run/checkpoints/best.ckpt")
    best.write_bytes(best.read_bytes()[:9000])
    finished = command("train", "resume=run", ALLOW)
    assert finished.status == 2
    assert finished.err.startswith("error: checkpoint=")
    assert "best.ckpt" in finished.err
    assert len(finished.err.splitlines()) == 1


def test_no_sound_checkpoint_at_all(command: Callable, work: Path) -> None:
    shutil.copytree(work / "dense", "run")
    for file in Path("run/checkpoints").iterdir():
        file.write_bytes(file.read_bytes()[:9000])
    finished = command("train", "resume=run", ALLOW)
    assert finished.status == 2
    assert finished.err.startswith("error: resume=run/checkpoints/last.ckpt")


@pytest.mark.filterwarnings("ignore:.*going on from best")
def test_a_hundred_damages_of_last(work: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    best, last = (run_dir / "checkpoints" / f"{name}.ckpt" for name in ("best", "last"))
    last.parent.mkdir(parents=True)
    shutil.copy(work / "dense" / "checkpoints" / "best.ckpt", best)
    whole = (work / "dense" / "checkpoints" / "last.ckpt").read_bytes()
    sound = contents(work / "dense")["state_dict"]
    fallen_back = 0
    for damaged in damages(whole, 100):
        last.write_bytes(damaged)
        resume.restore_last(run_dir)
        if last.read_bytes() == best.read_bytes():
            fallen_back += 1
        else:  # bytes that do not matter
            found = contents(run_dir)["state_dict"]
            assert all(torch.equal(found[key], value) for key, value in sound.items())
    assert fallen_back > 80


class Trap:
    """Unpickling this creates a file."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("proof"),)


def hostile(run_dir: Path, how: str) -> dict:
    """The last checkpoint of a run, made to ask for code."""
    checkpoint = contents(run_dir)
    if how == "pickle":
        return {**checkpoint, "extra": Trap()}
    hyper = checkpoint["hyper_parameters"]
    if how == "instantiator":
        hyper["_instantiator"] = "pytorch_lightning.cli.instantiate_module"
    elif how == "target":
        hyper["spec"]["arch"] = {"_target_": "os.mkdir", "path": "proof"}
    elif how == "weights":
        hyper["spec"]["arch"] = {"_target_": "torchvision.models.resnet18", "weights": "DEFAULT"}
    return checkpoint


@pytest.mark.parametrize("how", ["pickle", "instantiator", "target", "weights"])
@pytest.mark.parametrize("path", ["resume train", "resume prune", "checkpoint", "fit", "test"])
def test_what_is_refused_stays_refused(
    command: Callable, work: Path, pruned: Path, how: str, path: str
) -> None:
    """And is no damage, for which another checkpoint would be taken."""
    shutil.copytree(pruned if path == "resume prune" else work / "dense", "run")
    file = Path("run/checkpoints/last.ckpt")
    torch.save(hostile(Path("run"), how), file)
    if path.startswith("resume"):
        said = command(path.split()[1], "resume=run", ALLOW).err
    elif path == "checkpoint":
        said = command("prune", f"checkpoint={file}", ALLOW).err
    else:
        said = through_lightning(file, path, work / "dense")
    assert any(word in said for word in ("refused", "is not of rni_pl.models")), said
    assert not Path("proof").exists()


def through_lightning(file: Path, entry: str, sound: Path) -> str:
    """What Lightning's own Trainer says, with none of our plugins."""
    import pytorch_lightning as pl

    from rni_pl.classifier import Classifier

    module = Classifier.load_from_checkpoint(
        sound / "checkpoints" / "last.ckpt", allow=["nets.Dropping"]
    )
    batches = [(torch.zeros(2, 3, 32, 32), torch.tensor([0, 1]))]
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, max_epochs=9,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    with pytest.raises(Exception) as caught:  # noqa: PT011
        getattr(trainer, entry)(module, batches, ckpt_path=str(file))
    if isinstance(caught.value, CheckpointError):
        return str(caught.value)
    return "refused" if "Weights only load failed" in str(caught.value) else repr(caught.value)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 kB; without the right to mount one the test is left out."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no right to mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("stage", ["train", "prune"])
def test_a_disk_that_fills_up(work: Path, small_disk: Path, stage: str) -> None:
    run_dir = small_disk / "run"
    (work / "out").unlink(missing_ok=True)
    arguments = DENSE if stage == "prune" else SHORT_RUN
    child = start(work, stage, *arguments, f"hydra.run.dir={run_dir}", "trainer.max_epochs=999")
    appear(run_dir / "checkpoints" / "last.ckpt")
    fill(small_disk / "filler")
    child.join(60)
    assert child.exitcode == 2
    (line,) = (line for line in (work / "out").read_text().splitlines() if line)
    assert line.startswith("error: ")
    assert "No space left on device" in line
    assert line.endswith(f"go on with resume={run_dir}")
    assert not list(run_dir.rglob(".*.tmp*"))
    (small_disk / "filler").unlink()
    epoch = contents(run_dir)["epoch"]
    status, out = finish(work, stage, f"resume={run_dir}", f"trainer.max_epochs={epoch + 3}", ALLOW)
    assert status == 0, out
    assert contents(run_dir)["epoch"] == epoch + 2


def fill(file: Path) -> None:
    """Take every byte that is left."""
    with file.open("wb", buffering=0) as filler, contextlib.suppress(OSError):
        while filler.write(b"x" * 512):
            pass


def test_a_file_size_limit(tmp_path: Path) -> None:
    """Where nothing can be mounted: a write that stops in the middle."""
    file = tmp_path / "last.ckpt"
    storage = WholeCheckpoints()
    storage.save_checkpoint({"step": 1}, file)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.raises(StorageError, match=r"last\.ckpt cannot be written: File too large"):
            storage.save_checkpoint({"step": 2, "weights": torch.zeros(9999)}, file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert storage.load_checkpoint(file) == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_kill_in_the_middle_of_a_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "summary.json"
    write_whole(file, "old")

    def interrupted(_: int) -> None:
        assert file.read_text() == "old"
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_whole(file, "new")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("stage", ["train", "prune"])
@pytest.mark.parametrize("what", ["loss", "weights"])
def test_divergence_keeps_the_last_good_checkpoint(
    command: Callable, work: Path, stage: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rni_pl.classifier import Classifier

    step = Classifier.training_step

    def poisoned(self: Classifier, batch: Any, batch_idx: int) -> Any:
        loss = step(self, batch, batch_idx)
        if self.global_step == 11:  # the last of the third epoch
            if what == "loss":
                return loss * torch.inf
            loss.register_hook(lambda grad: grad * torch.nan)
        return loss

    monkeypatch.setattr(Classifier, "training_step", poisoned)
    arguments = (f"checkpoint={work / 'dense'}", *SHORT_RUN[2:]) if stage == "prune" else SHORT_RUN
    finished = command(stage, *arguments, "hydra.run.dir=run")
    assert finished.status == 2
    said = {"loss": "the loss is not finite since step", "weights": "the weights are not finite"}
    (line,) = finished.err.splitlines()
    assert said[what] in line
    assert "step 12 (learning rates now: 0.01, 0.1)" in line
    assert contents(Path("run"))["global_step"] == 8
    assert not Path("run/summary.json").exists()


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


def test_a_run_directory_fetches_no_weights(command: Callable, work: Path) -> None:
    """What `arch.weights` and its like in a foreign `config.yaml` would do without a checkpoint."""
    Path("run").mkdir()
    text = (work / "dense" / "config.yaml").read_text()
    Path("run/config.yaml").write_text(
        text.replace("- data=digits", "- data=digits\n- +arch.checkpoint_path=evil.pt")
    )
    finished = command("train", "resume=run", ALLOW)
    assert finished.status == 2
    assert "'+arch.checkpoint_path=evil.pt' in its config.yaml is not trusted" in finished.err


def test_a_recipe_given_anew_is_followed(command: Callable, work: Path) -> None:
    """Lightning by itself would keep learning rates and milestones of the checkpoint."""
    shutil.copytree(work / "dense", "run")
    groups = contents(Path("run"))["optimizer_states"][0]["param_groups"]
    assert [group["lr"] for group in groups] == pytest.approx([0.001, 0.01])
    anew = ("trainer.max_epochs=9", "optimizer.lr=0.05", "optimizer.weight_decay=0")
    assert command("train", "resume=run", ALLOW, *anew).status == 0
    groups = contents(Path("run"))["optimizer_states"][0]["param_groups"]
    assert [group["lr"] for group in groups] == pytest.approx([0.0005, 0.005])
    assert [group["weight_decay"] for group in groups] == [0, 0]
    (schedule,) = contents(Path("run"))["lr_schedulers"]
    assert sorted(schedule["milestones"]) == [18, 27]
