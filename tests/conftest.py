import logging
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from rni_pl import cli

if "PYTEST_XDIST_WORKER" in os.environ:  # one worker a core, and its subprocesses likewise
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parent.parent

# A run in a second or two: a few small batches of digits, nothing drawn on the screen.
SHORT = (
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=3",
    "trainer.enable_model_summary=false",
    "data.batch_size=16",
)


@dataclass
class Finished:
    """What a command left behind."""

    status: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def run_command(name: str, *arguments: str) -> int:
    """Run a command as its script would, in this process; its exit status."""
    before, root = sys.argv, logging.getLogger()
    handlers, level = root.handlers[:], root.level
    sys.argv = [f"{name}.py", *arguments]
    try:
        getattr(cli, name)()
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        sys.argv = before
        root.handlers[:] = handlers  # Hydra's write into the run directory, which is gone later
        root.setLevel(level)
    return 0


@pytest.fixture
def command(
    capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Finished]:
    """`command("train", "seed=1")` runs it in an empty working directory."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, *arguments: str) -> Finished:
        capsys.readouterr()
        status = run_command(name, *arguments)
        captured = capsys.readouterr()
        return Finished(status, captured.out, captured.err)

    return run


def run_python(*arguments: str, cwd: Path = ROOT, **environment: str) -> Finished:
    """Run the interpreter in a process of its own, with the package importable."""
    # Commands that ran in this process have set it.
    inherited = {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**inherited, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    return Finished(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run directory of a short training of ResNet-20 with RNI on digits."""
    run_dir = tmp_path_factory.mktemp("trained")
    arguments = ("arch=resnet20", "data=digits", *SHORT, f"hydra.run.dir={run_dir}")
    assert run_command("train", *arguments) == 0
    return run_dir


@pytest.fixture(scope="session")
def pruned(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run directory of half the channels of `trained` removed, and a short fine-tuning."""
    run_dir = tmp_path_factory.mktemp("pruned")
    arguments = (f"checkpoint={trained}", *SHORT, f"hydra.run.dir={run_dir}")
    assert run_command("prune", *arguments) == 0
    return run_dir


def damages(whole: bytes, count: int) -> Iterator[bytes]:
    """A file cut off, and with a byte changed, at random places, in turn."""
    places = random.Random(0)
    for number in range(count):
        place = places.randrange(len(whole))
        other = bytes([whole[place] ^ places.randrange(1, 256)])
        yield whole[:place] if number % 2 else whole[:place] + other + whole[place + 1 :]


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a network in `dense` that draws random numbers as it trains."""
    from child_processes import SHORT_RUN, finish

    folder = tmp_path_factory.mktemp("work")
    assert finish(folder, "train", *SHORT_RUN, "hydra.run.dir=dense")[0] == 0
    return folder
