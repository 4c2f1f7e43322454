"""What training and fine-tuning share: data, trainer, and how they fit and test."""

import logging
import re
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import LearningRateMonitor, RichProgressBar
from pytorch_lightning.loggers import Logger, TensorBoardLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn

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
    tensorboard,
)
from rni_pl.callbacks.checkpoints import WholeCheckpoints
from rni_pl.config import plain
from rni_pl.data import ClassificationData
from rni_pl.errors import ConfigError, RniError, StorageError, first_line
from rni_pl.norm import sync
from rni_pl.pruning import PruningReport
from rni_pl.runs.files import BEST, CHECKPOINTS, FAILURE, LAST, storage_errors, write_json
from rni_pl.runs.resume import check_fits, resumed_step
from rni_pl.training import hardware
from rni_pl.training.module import LOGGED, Classifier
from rni_pl.training.recipe import Recipe
from rni_pl.training.sharing import shared

# Values of the data configuration that concern only one run.
NOT_INHERITED = ("_target_", "source", "seed")


def make(node: DictConfig, what: str, kind: type) -> Any:
    """Instantiate a configuration node; a mistake in it is the user's, named in one line."""
    try:
        made = instantiate(node)
    except InstantiationException as error:
        cause = error.__cause__ or error
        if isinstance(cause, RniError):
            raise cause from error
        raise ConfigError(f"{what}: {_why(cause)}") from error
    if not isinstance(made, kind):
        raise ConfigError(f"{what}._target_={node.get('_target_')} makes no {kind.__name__}")
    return made


def _why(error: BaseException) -> str:
    """What an error of Hydra's `instantiate` comes from, in one line."""
    target = re.match(r"Error loading '([^']+)'", str(error))
    if target is None:
        return first_line(error)
    cause = error.__cause__ or error
    # Hydra tries a name as a module, too: why it is none is behind why it cannot be imported.
    while isinstance(cause, ImportError) and isinstance(cause.__context__, AttributeError):
        cause = cause.__context__
    while isinstance(cause, AttributeError) and isinstance(cause.__context__, AttributeError):
        cause = cause.__context__
    return f"{target[1]} cannot be imported: {first_line(cause)}"


def make_data(config: DictConfig, watch_test: bool = False) -> ClassificationData:
    """The data module, loaded: whatever is wrong with the data shows before anything is trained."""
    node = config.data.copy()
    OmegaConf.set_struct(node, False)
    node.pop("choice", None)
    data = shared("data", plain(node), lambda: _loaded(node))
    data.watch_test = watch_test
    return data


def _loaded(node: DictConfig) -> ClassificationData:
    data = make(node, "data", ClassificationData)
    data.prepare_data()
    data.setup("fit")
    return data


def make_recipe(config: DictConfig) -> Recipe:
    """Optimiser and schedule, as the groups of these names say.

    Raises:
        ConfigError: they cannot be made so.
    """
    node = config.optimizer.copy()
    OmegaConf.set_struct(node, False)
    factor = node.pop("sigbn_lr_factor", Recipe.sigbn_lr_factor)
    optimizer = make(node, "optimizer", partial)
    scheduler = make(config.scheduler, "scheduler", partial)
    recipe = Recipe(optimizer, scheduler, factor)
    recipe.check()
    return recipe


def plain_data_values(config: DictConfig) -> dict[str, Any]:
    """The data configuration in plain values, as a checkpoint carries it."""
    return {key: value for key, value in plain(config.data).items() if key not in NOT_INHERITED}


def check(
    config: DictConfig, classifier: Classifier, data: ClassificationData, last: Path | None
) -> None:
    """See that the network can be trained so, and is the one of the checkpoint `last`, if any.

    Raises:
        ConfigError: a norm layer would lose what it computes, or the data are others.
        CheckpointError: the checkpoint is of another network.
    """
    if config.trainer.sync_batchnorm:
        try:
            sync.check(classifier.model)
        except ValueError as error:
            raise ConfigError(f"trainer.sync_batchnorm=true is not allowed: {error}") from error
    if last is not None:
        check_fits(last, classifier.spec, classifier.model, data.sizes)


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
        raise ConfigError(f"trainer: {_why(error.__cause__ or error)}") from error
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


def fit(
    trainer: pl.Trainer,
    classifier: Classifier,
    data: ClassificationData,
    run_dir: Path,
    resume: Path | None,
    compiled: bool = False,
) -> None:
    """Train, through `torch.compile` if `compiled`, then take the weights of the best epoch.

    ``failure.json`` in the run directory says why a run failed.

    Raises:
        StorageError: something cannot be written; what was written before is whole.
    """
    failure = run_dir / FAILURE
    if compiled:
        classifier.model.compile()
    failure.unlink(missing_ok=True)
    try:
        with storage_errors():
            trainer.fit(classifier, datamodule=data, ckpt_path=resume, weights_only=True)
    except MisconfigurationException as error:
        raise ConfigError(f"trainer: {first_line(error)}") from error
    except StorageError:
        raise  # there is no room to write more
    except Exception as error:
        if trainer.is_global_zero:
            write_json({"error": f"{type(error).__name__}: {error}"}, failure)
        raise
    if trainer.max_epochs == 0:  # the network as it is
        for name in (BEST, LAST):
            trainer.save_checkpoint(run_dir / name, weights_only=False)
        return
    (ours,) = (one for one in trainer.checkpoint_callbacks if isinstance(one, BestCheckpoint))
    if not ours.best_model_path:
        raise ConfigError("training ended before its first validation, so there is no best epoch")
    classifier.take_weights(ours.best_model_path)


def test(trainer: pl.Trainer, classifier: Classifier, data: ClassificationData) -> float:
    """Accuracy on the test set, a fraction."""
    with storage_errors():
        figures = trainer.test(classifier, datamodule=data, verbose=False)[0]
    return round(float(figures["test/acc"]), 6)  # float32 knows no more


def log_hyperparameters(trainer: pl.Trainer, config: DictConfig, summary: dict[str, Any]) -> None:
    """What a finished run was asked for, and its figures: a row of TensorBoard's HParams."""
    parameters = tensorboard.hyperparameters(config, summary)
    metrics = tensorboard.final_metrics(summary)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            step = trainer.global_step
            tensorboard.add_hyperparameters(logger.experiment, parameters, metrics, step)
        else:
            logger.log_hyperparams(parameters)
            logger.log_metrics({f"summary/{key}": value for key, value in metrics.items()})


def finished(classifier: Classifier) -> nn.Module:
    """The network as `load_model` would return it: on the CPU, evaluating, in default layout.

    In float32, whatever precision it was trained in.
    """
    model = classifier.model.cpu().float().to(memory_format=torch.contiguous_format).eval()
    model.model_spec = classifier.spec  # type: ignore[assignment]
    return model
