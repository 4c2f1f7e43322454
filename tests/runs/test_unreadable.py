"""A checkpoint that cannot be read just now is not a damaged one."""

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), MemoryError()])
def test_a_sound_last_checkpoint_is_not_replaced(
    command: Callable, trained: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    shutil.copytree(trained, "run")
    last, load = Path("run/checkpoints/last.ckpt"), torch.load
    before = last.read_bytes()

    def failing(file: Any, *arguments: Any, **options: Any) -> Any:
        if Path(file).name == "last.ckpt":
            raise error
        return load(file, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", failing)
        refused = command("train", "resume=run")
    assert refused.status == 2
    assert "last.ckpt cannot be read: " in refused.err
    assert last.read_bytes() == before
