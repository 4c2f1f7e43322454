"""What tests of faults look at: the checkpoints and curves of runs that went on."""

import logging
import time
from pathlib import Path

import torch
from children import SHORT_RUN
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

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
