"""Commands in processes of their own that start in no time, to be killed or sent signals."""

import functools
import multiprocessing
import os
import sys
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest import mock

# Real images, a network that draws random numbers as it trains, a few steps.
SHORT_RUN = (
    "arch=custom",
    "arch._target_=nets.Dropping",
    "allow=[nets.Dropping]",
    "data=digits",
    "data.batch_size=16",
    "trainer.max_epochs=6",
    "trainer.limit_train_batches=4",
    "trainer.enable_model_summary=false",
    "trainer.precision=32-true",
)


def start(cwd: Path, name: str, *arguments: str) -> BaseProcess:
    """Start a command; what it prints goes to `cwd`/out."""
    child = _context().Process(target=_run, args=(cwd, name, arguments))
    child.start()
    return child


def finish(cwd: Path, name: str, *arguments: str) -> tuple[int | None, str]:
    """Run a command to its end: its exit status, and what it printed."""
    (cwd / "out").unlink(missing_ok=True)
    child = start(cwd, name, *arguments)
    child.join(120)
    return child.exitcode, (cwd / "out").read_text()


@functools.cache
def _context() -> Any:
    """Start the process that all are forked from, which finds modules by its environment alone."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["preloaded"])
    helpers = Path(__file__).resolve().parent
    found = os.pathsep.join(map(str, (*helpers.parents[:2], helpers)))
    with mock.patch.dict(os.environ, PYTHONPATH=found):
        forkserver.ensure_running()
    return context


def _run(cwd: Path, name: str, arguments: tuple[str, ...]) -> None:
    import torch
    from conftest import run_command
    from tensorboard.summary.writer import event_file_writer

    torch.set_num_threads(1)
    # Event files of one second are read in the order of names, ".10" before ".9".
    event_file_writer._global_uid = event_file_writer.AtomicCounter(1000)
    os.chdir(cwd)
    out = os.open("out", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False, buffering=1)  # noqa: SIM115
    sys.exit(run_command(name, *arguments))
