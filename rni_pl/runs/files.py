"""The files of a run by name, written whole or not at all, and the small ones read."""

import errno
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rni_pl.errors import ConfigError, StorageError

CONFIG = "config.yaml"  # resolved
SUMMARY = "summary.json"  # the figures, once the run is done
BEFORE = "before_finetuning.json"  # those of a pruned network, before fine-tuning
ORIGIN = "checkpoint.sha256"  # of the weights that were pruned
SENSITIVITY = "sensitivity.json"  # accuracy against the share of each layer
PLAN = "plan.json"  # the channels that layers keep
FAILURE = "failure.json"  # why a run is not done
CHECKPOINTS = "checkpoints"
BEST = f"{CHECKPOINTS}/best.ckpt"  # of the epoch with the best validation accuracy
LAST = f"{CHECKPOINTS}/last.ckpt"  # what a run resumes from
LOCK = ".lock"  # held while a run writes
HALF_WRITTEN = ".*.tmp.*"  # what `whole` leaves where it is killed

# All that a run writes, and so all that `overwrite=true` deletes.
RUN_FILES = (
    SUMMARY, BEFORE, ORIGIN, PLAN, SENSITIVITY, FAILURE, BEST, LAST,
    "hparams.yaml", "events.out.tfevents.*", "metrics.csv",  # of loggers
    CONFIG,  # last: a run is there as long as its configuration is
)  # fmt: skip


def files_of(run_dir: Path) -> list[Path]:
    """What a run has written into a directory."""
    return [file for name in RUN_FILES for file in run_dir.glob(name)]


def remove_empty(run_dir: Path) -> None:
    """Remove a run directory in which nothing was written, and parents that are empty then."""
    with suppress(OSError):
        (run_dir / CHECKPOINTS).rmdir()
    here = Path.cwd()
    for path in (run_dir, *run_dir.parents):
        if path == here or (not path.is_relative_to(here) and path != run_dir):
            return
        try:
            path.rmdir()
        except OSError:
            return


def write_json(figures: dict[str, Any], file: Path) -> None:
    """Write figures of a run."""
    write_whole(file, json.dumps(figures, indent=2) + "\n")


def read_json(file: Path) -> dict[str, Any]:
    """Read figures of a run. Raises `ConfigError` if the file is missing or damaged."""
    try:
        figures = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} is missing or damaged: the run cannot be resumed") from error
    if not isinstance(figures, dict):
        raise ConfigError(f"{file} is damaged: the run cannot be resumed")
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


def _sync(folder: Path) -> None:
    """Have a rename on the disk, where folders can be opened at all."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
