"""What training and fine-tuning share: data, trainer, and how they fit and test."""

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn

from rni_pl.callbacks import (
    BestCheckpoint,
    tensorboard,
)
from rni_pl.config import plain
from rni_pl.data import ClassificationData
from rni_pl.errors import ConfigError, RniError, StorageError, first_line
from rni_pl.norm import sync
from rni_pl.runs.files import BEST, FAILURE, LAST, storage_errors, write_json
from rni_pl.runs.resume import check_fits
from rni_pl.training.module import Classifier
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
        raise ConfigError(f"{what}: {why(cause)}") from error
    if not isinstance(made, kind):
        raise ConfigError(f"{what}._target_={node.get('_target_')} makes no {kind.__name__}")
    return made


def why(error: BaseException) -> str:
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
