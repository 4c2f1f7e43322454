"""Imports all that a command imports, by running one: see `children`."""

import contextlib
import io
import os
import tempfile

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from child_processes import SHORT_RUN
from conftest import run_command

torch.set_num_threads(1)
with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
    assert run_command("train", *SHORT_RUN, f"hydra.run.dir={folder}/dense") == 0
    arguments = (f"checkpoint={folder}/dense", *SHORT_RUN[2:], f"hydra.run.dir={folder}/pruned")
    assert run_command("prune", *arguments) == 0
