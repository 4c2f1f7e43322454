"""Lightning's Trainer as a run is configured: its callbacks, its loggers, its checkpoints."""

import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import LearningRateMonitor, RichProgressBar
from pytorch_lightning.loggers import Logger

from rni_pl.callbacks import (
    BestCheckpoint,
    Continuation,
    EpochLines,
    LastCheckpoint,
    ModelSummary,
    Monitor,
    StopOnDivergence,
    StopOnSignal,
    SyncBatchNorm,
)
from rni_pl.callbacks.checkpoints import WholeCheckpoints
from rni_pl.config import plain
from rni_pl.errors import ConfigError
from rni_pl.pruning import PruningReport
from rni_pl.runs.files import CHECKPOINTS, LAST
from rni_pl.runs.resume import resumed_step
from rni_pl.training import hardware
from rni_pl.training.fitting import make, why
from rni_pl.training.module import LOGGED


def make_trainer(
    config: DictConfig,
    run_dir: Path,
    callbacks: list[pl.Callback],
    report: PruningReport | None = None,
) -> pl.Trainer:
    """Lightning's Trainer with our callbacks, checkpoints and TensorBoard in the run directory.

    `report` says what was pruned, to be shown.
    """
    _quieten()
    hardware.keep_freed_memory()
    arguments = _trainer_arguments(config)
    lines = config.trainer.enable_progress_bar and not arguments["enable_progress_bar"]
    callbacks = [*callbacks, *([EpochLines()] if lines else [])]
    callbacks += _shared_callbacks(config, arguments, run_dir, report)
    del arguments["sync_batchnorm"]
    arguments["enable_model_summary"] = False  # Lightning's: ours counts MACs
    loggers = [_logger(config, name, run_dir) for name in config.get("logger") or ()]
    try:
        trainer = instantiate(OmegaConf.create(arguments), callbacks=callbacks, logger=loggers)
    except InstantiationException as error:
        raise ConfigError(f"trainer: {why(error.__cause__ or error)}") from error
    _check_batch_size(config, trainer)
    trainer.strategy.checkpoint_io = WholeCheckpoints()
    return trainer


def _trainer_arguments(config: DictConfig) -> dict[str, Any]:
    """What is under `trainer.`, with what follows from the machine and the terminal."""
    arguments = plain(config.trainer)
    for key, group in (("logger", "logger=csv"), ("callbacks", "+callbacks.NAME._target_=CLASS")):
        if key in arguments:
            raise ConfigError(f"trainer.{key} is not allowed; give {group}")
    terminal = sys.stderr.isatty() and sys.stdout.isatty()
    arguments["enable_progress_bar"] = arguments["enable_progress_bar"] and terminal
    arguments["precision"] = hardware.choose_precision(
        arguments["precision"], arguments["accelerator"]
    )
    arguments["benchmark"] = hardware.search_kernels(
        arguments["benchmark"], arguments["deterministic"]
    )
    return arguments


def _logger(config: DictConfig, name: str, run_dir: Path) -> Logger:
    """One of the loggers, which keeps its files in the run directory."""
    node = config.logger[name].copy()
    OmegaConf.set_struct(node, False)
    node.save_dir = str(run_dir)
    if str(node.get("_target_", "")).endswith("TensorBoardLogger"):
        node.purge_step = resumed_step(config)  # no point of a curve is there twice
    return make(node, f"logger.{name}", Logger)


def _shared_callbacks(
    config: DictConfig, arguments: dict[str, Any], run_dir: Path, report: PruningReport | None
) -> list[pl.Callback]:
    """Those of both stages, in the order in which Lightning calls them, but checkpoints last."""
    folder = run_dir / CHECKPOINTS
    return [
        *([RichProgressBar()] if arguments["enable_progress_bar"] else []),
        *([ModelSummary()] if arguments.pop("enable_model_summary") else []),
        *([SyncBatchNorm()] if arguments["sync_batchnorm"] else []),
        *_chosen_callbacks(config),
        Continuation(),
        StopOnDivergence(),
        StopOnSignal(run_dir / LAST),
        BestCheckpoint(folder),
        LastCheckpoint(folder),
        Monitor(report),
    ]


def _check_batch_size(config: DictConfig, trainer: pl.Trainer) -> None:
    smallest = 2 * trainer.world_size  # BatchNorm cannot train on one image
    if config.data.batch_size < smallest:
        raise ConfigError(
            f"data.batch_size={config.data.batch_size} is not allowed with {trainer.world_size} "
            f"processes; allowed: an integer from {smallest}"
        )


def _chosen_callbacks(config: DictConfig) -> list[pl.Callback]:
    """Those of `callbacks=`. The learning rate is only logged where there is a logger."""
    made = [
        make(node, f"callbacks.{name}", pl.Callback)
        for name, node in (config.get("callbacks") or {}).items()
    ]
    if all(type(one).__module__.startswith("pytorch_lightning.") for one in made):
        for name, one in zip(config.get("callbacks") or (), made, strict=True):
            _check_monitor(f"callbacks.{name}", getattr(one, "monitor", None))
    return [one for one in made if config.get("logger") or not isinstance(one, LearningRateMonitor)]


def _check_monitor(name: str, monitor: str | None) -> None:
    """Raise `ConfigError` where a callback waits for a metric that nothing here logs.

    Lightning itself would say so after the first epoch.
    """
    ours = (*LOGGED, "images_per_second", "sparsity/penalty")
    if monitor is None or monitor in ours or monitor.startswith("sparsity/receded_"):
        return
    raise ConfigError(f"{name}.monitor={monitor} is not logged; allowed: {', '.join(ours)}")


def _quieten() -> None:
    """Leave out Lightning's advertisements and advice that does not apply here."""
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    ours = "It is recommended to use .self.log"  # our metrics are synchronised by torchmetrics
    known = (
        "LeafSpec",
        "smaller than the logging interval",
        "does not have many workers",
        ours,
        "exists and is not empty",
    )
    for message in known:
        warnings.filterwarnings("ignore", f".*{message}.*")
