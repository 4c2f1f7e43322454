"""The files of a run by name, written whole or not at all, and the small ones read."""

import errno
import functools
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rni_pl.errors import ConfigError, StorageError

# What a run keeps where in its directory.
CONFIG = "config.yaml"  # resolved, with the overrides that it was composed from
SUMMARY = "summary.json"  # its figures, once it is done
BEFORE = "before_finetuning.json"  # those of a pruned network that goes on being fine-tuned
ORIGIN = "checkpoint.sha256"  # of the weights that were pruned
FAILURE = "failure.json"  # why it is not done
CHECKPOINTS = "checkpoints"
BEST = f"{CHECKPOINTS}/best.ckpt"  # of the epoch with the best validation accuracy
LAST = f"{CHECKPOINTS}/last.ckpt"  # what it goes on from
HALF_WRITTEN = ".*.tmp.*"  # what `whole` leaves where it is killed


def write_json(figures: dict[str, Any], file: Path) -> None:
    """Write figures of a run."""
    write_whole(file, json.dumps(figures, indent=2) + "\n")


def read_json(file: Path) -> dict[str, Any]:
    """Read figures of a run that goes on."""
    try:
        figures = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} is missing or damaged: the run cannot go on") from error
    if not isinstance(figures, dict):
        raise ConfigError(f"{file} is damaged: the run cannot go on")
    return figures


def write_whole(path: Path, contents: str | bytes | memoryview) -> None:
    """Write a file whole or not at all; for the errors see `whole`."""
    with whole(path) as temporary:
        temporary.write_bytes(contents.encode() if isinstance(contents, str) else contents)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, which takes its place where the block ends without error.

    Otherwise the temporary file is removed and `path` is left as it was, even if the machine stops
    in the middle. The suffix is the same.

    Raises:
        StorageError: the file system refuses, for one because it is full.
    """
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex}.tmp{path.suffix}")
    try:
        try:
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
            _sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        kept = f"; the {path.name} that is there is whole" if path.exists() else ""
        raise StorageError(f"{path} cannot be written: {error.strerror or error}{kept}") from error


# What a file system says when it cannot write: full, over quota, too large, not allowed, gone.
_REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
_REFUSALS |= {errno.EIO, errno.ESTALE}


@contextmanager
def storage_errors() -> Iterator[None]:
    """Name what goes wrong where others write, such as the logger; other errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        raise StorageError(f"the run cannot write its files: {error.strerror or error}") from error


# How many processes were started together, as launchers tell each of them.
_SIZES = ("WORLD_SIZE", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "JSM_NAMESPACE_SIZE")


@functools.cache
def own_directory(path: str) -> str:
    """A new directory with this name, or with a number behind it where another process has that.

    What names directories by the second needs it. Processes of one run, which others have started,
    share what they are given.
    """
    if any(os.environ.get(name, "1") != "1" for name in _SIZES):
        return path
    number, own = 1, path
    while True:
        try:
            Path(own).mkdir(parents=True)
        except FileExistsError:
            number += 1
            own = f"{path}_{number}"
        else:
            return own


def _sync(folder: Path) -> None:
    """Have a rename on the disk, where folders can be opened at all."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
