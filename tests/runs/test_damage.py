"""Damaged and foreign files, full disks, numbers that are none: named, and nothing good is lost."""

import contextlib
import errno
import os
import re
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from child_processes import SHORT_RUN, finish, start
from conftest import damages
from left_by_runs import ALLOW, DENSE, Trap, appear, contents

from rni_pl.callbacks.checkpoints import WholeCheckpoints
from rni_pl.errors import CheckpointError, StorageError
from rni_pl.runs import resume
from rni_pl.runs.files import storage_errors, write_whole


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
    assert finished.err.startswith("error: resume=")
    assert "best.ckpt is damaged" in finished.err
    assert len(finished.err.splitlines()) == 1
    best.unlink()
    finished = command("train", "resume=run", ALLOW)
    assert finished.status == 2
    assert finished.err.startswith("error: resume=")
    assert "run: best.ckpt is missing" in finished.err
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

    from rni_pl.training.module import Classifier

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
    said = (line for line in (work / "out").read_text().splitlines() if line)
    (line,) = (line for line in said if not line.startswith("epoch "))
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


def test_errors_of_the_file_system_are_told_from_others() -> None:
    for number in (errno.ENOSPC, errno.EROFS, errno.EACCES):
        with pytest.raises(StorageError, match="cannot write its files"), storage_errors():
            raise OSError(number, os.strerror(number))
    for other in (ConnectionResetError(errno.ECONNRESET, "reset"), OSError("a broken image")):
        with pytest.raises(type(other)) as caught, storage_errors():
            raise other
        assert caught.value is other


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
    from rni_pl.training.module import Classifier

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
