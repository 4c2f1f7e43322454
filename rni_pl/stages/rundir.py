"""The files of a run in its directory: made room for, written, brought back."""

import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf

from rni_pl import tensorboard
from rni_pl.errors import CheckpointError, ConfigError, DataError, PruningError
from rni_pl.files import (
    BEFORE,
    CHECKPOINTS,
    CONFIG,
    FAILURE,
    HALF_WRITTEN,
    ORIGIN,
    SUMMARY,
    write_json,
    write_whole,
)
from rni_pl.stages.resume import has_checkpoint, resumed_step

# What a run writes.
RUN_FILES = (
    CONFIG,
    "hparams.yaml",
    SUMMARY,
    BEFORE,
    ORIGIN,
    FAILURE,
    "events.out.*",
    f"{CHECKPOINTS}/*.ckpt",  # one that was being written when the run was killed included
)

# Where a run that is being replaced waits until the new one has taken its first steps.
REPLACED = ".replaced"

# What a user gave wrong: found before the first step, it leaves no run directory behind.
MISTAKES = (ConfigError, DataError, CheckpointError, PruningError)


@contextmanager
def begun(trainer: pl.Trainer, config: DictConfig, run_dir: Path) -> Iterator[None]:
    """Make room for a run and write its resolved configuration, for as long as it is under way.

    If it starts from its beginning, what an earlier run left in the same directory is set aside, so
    that nothing of it can pass for the new one's. If it goes on, its figures are out of date from
    then on, and deleted. All is back where the new one ends before its first step. Where a mistake
    of the user's ends it so, nothing else is left.
    """
    aside = run_dir / REPLACED
    here, start = trainer.is_global_zero, resumed_step(config)
    before: dict[Path, bytes] = {}
    try:
        if here:
            if start is None and set_aside(run_dir, aside) and config.resume is None:
                warnings.warn(
                    f"{run_dir} holds an earlier run, which this one replaces", stacklevel=3
                )
            run_dir.mkdir(parents=True, exist_ok=True)
            _remove_halves(run_dir)
            files = [run_dir / name for name in (CONFIG, SUMMARY)]
            before = {file: file.read_bytes() for file in files if file.is_file()}
            (run_dir / SUMMARY).unlink(missing_ok=True)
            write_whole(run_dir / CONFIG, OmegaConf.to_yaml(config, resolve=True))
        yield
    except BaseException as error:
        came_to_nothing = here and trainer.global_step <= (start or 0)
        if came_to_nothing and start is None and (aside.is_dir() or isinstance(error, MISTAKES)):
            clear(run_dir)
            bring_back(run_dir, aside)
        if came_to_nothing:
            for file, contents in before.items():  # none where the run starts from its beginning
                write_whole(file, contents)
        raise
    finally:
        if here:
            shutil.rmtree(aside, ignore_errors=True)


def _remove_halves(run_dir: Path) -> None:
    """Remove what was being written when a process was killed."""
    for folder in (run_dir, run_dir / CHECKPOINTS):
        for half in folder.glob(HALF_WRITTEN):
            half.unlink()


def set_aside(run_dir: Path, aside: Path) -> bool:
    """Move what a run wrote into another directory; whether there was anything."""
    _bring_back_after_a_kill(run_dir, aside)
    found = files_of(run_dir)
    shutil.rmtree(aside, ignore_errors=True)
    for file in found:
        place = aside / file.relative_to(run_dir)
        place.parent.mkdir(parents=True, exist_ok=True)
        file.rename(place)
    clear(run_dir)
    return bool(found)


def _bring_back_after_a_kill(run_dir: Path, aside: Path) -> None:
    """Undo `set_aside` of a process that was killed before it wrote a checkpoint of its own."""
    there, waits = (run_dir / CONFIG).is_file(), (aside / CONFIG).is_file()
    if there and has_checkpoint(run_dir):
        return
    if there and waits:  # else it was killed as it moved the files of one run
        clear(run_dir)
    bring_back(run_dir, aside)


def bring_back(run_dir: Path, aside: Path) -> None:
    """Undo `set_aside`."""
    for file in files_of(aside):
        place = run_dir / file.relative_to(aside)
        place.parent.mkdir(parents=True, exist_ok=True)
        file.rename(place)


def clear(run_dir: Path) -> None:
    """Remove what a run writes."""
    for file in files_of(run_dir):
        file.unlink()
    with suppress(OSError):  # not there, or it holds files of others
        (run_dir / CHECKPOINTS).rmdir()


def files_of(run_dir: Path) -> list[Path]:
    """What a run has written."""
    return [file for name in RUN_FILES for file in run_dir.glob(name)]


def finish(trainer: pl.Trainer, config: DictConfig, summary: dict[str, Any], run_dir: Path) -> None:
    """Write the figures of a run that is done: `summary.json`, and its row in TensorBoard."""
    write_json(summary, run_dir / SUMMARY)
    tensorboard.add_hyperparameters(
        trainer.logger.experiment,  # type: ignore[union-attr]
        tensorboard.hyperparameters(config, summary),
        tensorboard.final_metrics(summary),
    )
