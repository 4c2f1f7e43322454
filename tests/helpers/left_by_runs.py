"""What a run leaves in its directory, for the tests to look at; and runs that stop early."""

import json
import logging
import time
from pathlib import Path

import pytest
import torch
from child_processes import SHORT_RUN
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ALLOW = "allow=[nets.Dropping]"
DENSE = ("checkpoint=dense", *SHORT_RUN[2:])

# A module of a user's, with a network that takes an argument.
NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self, width=6, num_classes=10):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, width, 3), nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, num_classes)
    def forward(self, x):
        return self.fc(self.bn(self.conv(x)).relu().mean((2, 3)))
"""


class Trap:
    """Unpickling this creates a file."""

    def __init__(self, proof: Path = Path("proof")) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple:
        return Path.touch, (self.proof,)


def summary(run_dir: Path | str) -> dict:
    return json.loads((Path(run_dir) / "summary.json").read_text())


def files(run_dir: Path | str) -> dict[str, bytes]:
    """All of a run's files but its lock."""
    found = (f for f in Path(run_dir).rglob("*") if f.is_file() and f.name != ".lock")
    return {str(file.relative_to(run_dir)): file.read_bytes() for file in found}


def contents(run_dir: Path | str, name: str = "last") -> dict:
    return torch.load(Path(run_dir) / "checkpoints" / f"{name}.ckpt", weights_only=True)


def stop_after(monkeypatch: pytest.MonkeyPatch, epochs: int = 1) -> None:
    """Have runs end with an error after their first epochs, and leave what is on disk then."""
    from rni_pl.errors import RniError
    from rni_pl.training.module import Classifier

    def stop(module: Classifier) -> None:
        if module.current_epoch == epochs:
            raise RniError("interrupted")

    monkeypatch.setattr(Classifier, "on_train_epoch_start", stop)


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
