"""Runs that are killed, interrupted, or out of room go on as if nothing had happened."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from children import SHORT_RUN, finish, start


def weights(run_dir: Path, name: str = "best") -> dict[str, torch.Tensor]:
    file = run_dir / "checkpoints" / f"{name}.ckpt"
    return torch.load(file, weights_only=True)["state_dict"]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def appear(path: Path, seconds: float = 30) -> float:
    """Wait for a file or folder; when it was there."""
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"no {path.name}"
        time.sleep(0.001)
    return time.monotonic()


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["train", "prune"])
def test_killed(tmp_path: Path, stage: str) -> None:
    arguments = SHORT_RUN
    if stage == "prune":
        assert finish(tmp_path, "train", *SHORT_RUN, "hydra.run.dir=dense")[0] == 0
        arguments = ("checkpoint=dense", *SHORT_RUN[2:])
    child = start(tmp_path, stage, *arguments, "hydra.run.dir=whole")
    begun = appear(tmp_path / "whole")
    child.join()
    took = time.monotonic() - begun
    print(took)
    rng = random.Random(0)
    for number in range(int(os.environ.get("N", "20"))):
        run = tmp_path / str(number)
        child = start(tmp_path, stage, *arguments, f"hydra.run.dir={number}")
        appear(run)
        time.sleep(took * (number + rng.random()) / int(os.environ.get("N", "20")))
        child.kill()
        child.join()
        there = sorted(
            str(p.relative_to(run))
            for p in run.rglob("*")
            if p.is_file() and "events" not in p.name
        )
        if (run / "config.yaml").exists():
            status, out = finish(tmp_path, stage, f"resume={number}", "allow=[nets.Dropping]")
        else:
            status, out = finish(tmp_path, stage, *arguments, f"hydra.run.dir={number}")
        print(
            number,
            child.exitcode,
            there,
            out[:300] if status else [l for l in out.splitlines() if "resume" in l],
        )
        assert status == 0, out
        assert same(weights(run), weights(tmp_path / "whole"))
        assert same(weights(run, "last"), weights(tmp_path / "whole", "last"))


def curves(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir)).Reload()
    return {
        tag: [(point.step, point.value) for point in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("stage", ["train", "prune"])
def test_interrupted(tmp_path: Path, stage: str, signum: int) -> None:
    arguments = (*SHORT_RUN, "trainer.limit_train_batches=60", "trainer.max_epochs=3")
    if stage == "prune":
        assert finish(tmp_path, "train", *SHORT_RUN, "hydra.run.dir=dense")[0] == 0
        arguments = ("checkpoint=dense", *arguments[2:])
    assert finish(tmp_path, stage, *arguments, "hydra.run.dir=whole")[0] == 0
    (tmp_path / "out").unlink()
    run = tmp_path / "run"
    child = start(tmp_path, stage, *arguments, "hydra.run.dir=run")
    appear(run / "checkpoints/last.ckpt")
    time.sleep(0.1)
    os.kill(child.pid, signum)
    child.join()
    out = (tmp_path / "out").read_text()
    print(out)
    assert child.exitcode == 128 + signum
    assert out.splitlines() == [f"interrupted; go on with resume={run}"]
    print(torch.load(run / "checkpoints/last.ckpt")["global_step"])
    assert not (run / "summary.json").exists()
    status, out = finish(tmp_path, stage, "resume=run", "allow=[nets.Dropping]")
    assert status == 0, out
    for name in ("best", "last"):
        assert same(weights(run, name), weights(tmp_path / "whole", name))
    assert curves(run) == curves(tmp_path / "whole")
