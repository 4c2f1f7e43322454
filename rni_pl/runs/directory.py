"""The directory of a run: refused, resumed or overwritten where it holds one, and locked."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from filelock import FileLock, Timeout
from omegaconf import DictConfig
from pytorch_lightning.utilities import rank_zero_only, rank_zero_warn

from rni_pl.errors import CheckpointError, ConfigError, DataError, PruningError
from rni_pl.runs import checkpoint, resume, stored
from rni_pl.runs.files import (
    CHECKPOINTS,
    CONFIG,
    HALF_WRITTEN,
    LOCK,
    SUMMARY,
    files_of,
    write_whole,
)

# What a user gave wrong: found before the first step, it leaves nothing behind.
MISTAKES = (ConfigError, DataError, CheckpointError, PruningError)


def refuse_a_run_in(run_dir: Path) -> None:
    """Raise `ConfigError` where a directory holds a run."""
    if files_of(run_dir):
        raise ConfigError(
            f"{run_dir} holds a run: resume={run_dir} goes on with it, resume=auto goes on or "
            "begins, overwrite=true deletes its files; or give another directory"
        )


def go_on_or_begin(config: DictConfig, run_dir: Path) -> dict[str, Any] | None:
    """Have `config` resume the run in a directory, if there is one; its summary if it is finished.

    Raises:
        ConfigError: the run there is another one, or its files are damaged.
    """
    if not files_of(run_dir):
        return None
    there = stored.read(config.command, run_dir)
    differ = stored.differences(config, there)
    if "checkpoint" in config and not resume.has_same_weights(config.checkpoint, run_dir):
        before = there.get("checkpoint")
        if before != config.checkpoint:
            differ.append(f"checkpoint={before!r} there")
    if differ:
        raise ConfigError(
            f"{run_dir} holds a run of another configuration ({', '.join(differ[:3])}); "
            f"resume={run_dir} goes on with that one, overwrite=true deletes its files; or give "
            "another directory"
        )
    if (run_dir / SUMMARY).is_file():
        return _summary(run_dir)
    config.resume = str(run_dir)
    return None


def _summary(run_dir: Path) -> dict[str, Any]:
    try:
        return json.loads((run_dir / SUMMARY).read_text())
    except ValueError as error:
        raise ConfigError(f"{run_dir / SUMMARY} is damaged; delete it to go on") from error


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Keep other runs out of a directory; of several processes the first does.

    Raises:
        ConfigError: another run is writing there.
    """
    if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
        yield
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run_dir / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ConfigError(f"another run is writing into {run_dir}: give another one") from error
    except (OSError, NotImplementedError) as error:  # some network file systems
        rank_zero_warn(f"{run_dir} cannot be locked against other runs: {error}")
    try:
        yield
    finally:
        if not (run_dir / CONFIG).is_file():  # nothing was begun
            (run_dir / LOCK).unlink(missing_ok=True)
        lock.release()


@contextmanager
def written(trainer: pl.Trainer, config: DictConfig, run_dir: Path) -> Iterator[None]:
    """Write a run's configuration, and what the block writes; before, delete what it replaces.

    Entered once configuration, data and network are sound. Where a mistake of the user's ends a run
    before its first step, nothing of it is left.
    """
    if trainer.world_size > 1:  # all have looked at the directory before the first writes to it
        trainer.strategy.setup_environment()
        trainer.strategy.barrier()
    here, begins = trainer.is_global_zero, resume.last_checkpoint(config) is None
    if here:
        if begins:
            if config.resume is None and not config.overwrite:
                refuse_a_run_in(run_dir)
            clear(run_dir)
        _remove_halves(run_dir)
        (run_dir / SUMMARY).unlink(missing_ok=True)  # out of date from here on
        write_whole(run_dir / CONFIG, stored.to_yaml(config))
    try:
        yield
    except MISTAKES:
        if here and config.resume is None and not trainer.global_step:
            clear(run_dir)
        raise


def keep_source(config: DictConfig, run_dir: Path) -> None:
    """Raise `ConfigError` where a run would delete the checkpoint that it starts from."""
    if config.checkpoint is None or config.resume is not None:
        return
    source = checkpoint.locate(config.checkpoint).resolve()
    if source in [file.resolve() for file in files_of(run_dir)]:
        raise ConfigError(
            f"checkpoint={config.checkpoint} is in {run_dir}, which this run would overwrite: give "
            "another hydra.run.dir"
        )


def clear(run_dir: Path) -> None:
    """Delete what a run writes, and nothing else."""
    for file in files_of(run_dir):
        file.unlink()


def _remove_halves(run_dir: Path) -> None:
    """Remove what was being written when a process was killed."""
    for folder in (run_dir, run_dir / CHECKPOINTS):
        for half in folder.glob(HALF_WRITTEN):
            half.unlink()
