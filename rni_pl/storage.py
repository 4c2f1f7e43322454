"""Files that are written whole or not at all, whatever happens in between."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from rni_pl import checkpoint as reading
from rni_pl.errors import StorageError


def write_whole(path: Path, contents: str | bytes | memoryview) -> None:
    """Write a file whole or not at all, even if the machine stops in the middle.

    Raises:
        StorageError: the file system refuses, for one because it is full; `path` is as it was.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    data = contents.encode() if isinstance(contents, str) else contents
    try:
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            _sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        kept = f"; the {path.name} that is there is whole" if path.exists() else ""
        raise StorageError(f"{path} cannot be written: {error.strerror or error}{kept}") from error


@contextmanager
def storage_errors() -> Iterator[None]:
    """Name what goes wrong where others write, such as the logger."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"the run cannot write its files: {error.strerror or error}") from error


def _sync(folder: Path) -> None:
    """Have a rename on the disk, where folders can be opened at all."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class WholeCheckpoints(TorchCheckpointIO):
    """Lightning's checkpoints, written whole or not at all and read as plain data alone.

    Lightning's own go through the system's temporary folder, which may be another file system, so
    that a kill can leave half a file; and they may be lost with the power.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write to a file beside `path`, then rename. Raises `StorageError`."""
        buffer = io.BytesIO()  # on a full disk torch.save to a file would end the process
        torch.save(checkpoint, buffer)
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{path} cannot be written: {error.strerror or error}") from error
        write_whole(Path(path), buffer.getbuffer())

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read on the CPU, whatever `weights_only` says. Raises `CheckpointError`."""
        return reading.read_plain(Path(path))
