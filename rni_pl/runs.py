"""What both stages share: data, trainer and the files of a run directory."""

import json
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import RichModelSummary, RichProgressBar
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn

from rni_pl import checkpoint
from rni_pl.callbacks import (
    BestCheckpoint,
    Continuation,
    LastCheckpoint,
    StopOnDivergence,
    StopOnSignal,
)
from rni_pl.classifier import Classifier
from rni_pl.config import plain
from rni_pl.data import ImageData
from rni_pl.errors import ConfigError, RniError, reason
from rni_pl.norm import norm_kind
from rni_pl.resume import resumed_step
from rni_pl.storage import WholeCheckpoints, storage_errors, write_whole

# What a run writes.
RUN_FILES = (
    "config.yaml",
    "hparams.yaml",
    "summary.json",
    "before_finetuning.json",
    "events.out.*",
    "checkpoints/*.ckpt",
    "checkpoints/.*.tmp",
)

# Values of the data configuration that concern one run alone.
NOT_INHERITED = ("_target_", "source", "seed")


def make(node: DictConfig, what: str, kind: type) -> Any:
    """Instantiate a configuration node; a mistake in it is the user's, named in one line."""
    try:
        made = instantiate(node)
    except InstantiationException as error:
        cause = error.__cause__ or error
        if isinstance(cause, RniError):
            raise cause from error
        raise ConfigError(f"{what}: {reason(cause)}") from error
    if not isinstance(made, kind):
        raise ConfigError(f"{what}._target_={node.get('_target_')} makes no {kind.__name__}")
    return made


def make_data(config: DictConfig, watch_test: bool = False) -> ImageData:
    """The data module, loaded: whatever is wrong with the data shows before anything is trained."""
    node = config.data.copy()
    OmegaConf.set_struct(node, False)
    node.pop("choice", None)
    data = make(node, "data", pl.LightningDataModule)
    data.watch_test = watch_test
    data.prepare_data()
    data.setup("fit")
    return data


def plain_data_values(config: DictConfig) -> dict[str, Any]:
    """The data configuration in plain values, as a checkpoint carries it."""
    return {key: value for key, value in plain(config.data).items() if key not in NOT_INHERITED}


def check_norms(config: DictConfig, model: nn.Module) -> None:
    """Refuse torch's SyncBatchNorm for networks with SigBN: it would take gamma for the scale."""
    if config.trainer.sync_batchnorm and norm_kind(model) == "sigbn":
        raise ConfigError("trainer.sync_batchnorm=true is not allowed with SigBN layers (rni)")


def make_trainer(config: DictConfig, run_dir: Path, callbacks: list[pl.Callback]) -> pl.Trainer:
    """Lightning's Trainer with our callbacks, checkpoints and TensorBoard in the run directory."""
    _quieten()
    terminal = sys.stderr.isatty() and sys.stdout.isatty()
    arguments = plain(config.trainer)
    arguments["enable_progress_bar"] = arguments["enable_progress_bar"] and terminal
    if arguments["enable_progress_bar"]:
        callbacks = [*callbacks, RichProgressBar()]
    if arguments["enable_model_summary"]:
        callbacks = [*callbacks, RichModelSummary(max_depth=1)]
    folder = run_dir / "checkpoints"
    callbacks = [*callbacks, Continuation(), StopOnDivergence(), StopOnSignal(folder / "last.ckpt")]
    callbacks = [*callbacks, BestCheckpoint(folder), LastCheckpoint(folder)]
    logger = TensorBoardLogger(
        run_dir, name="", version="", default_hp_metric=False, purge_step=resumed_step(config)
    )
    node = OmegaConf.create(arguments)
    try:
        trainer = instantiate(node, callbacks=callbacks, logger=logger)
    except InstantiationException as error:
        raise ConfigError(f"trainer: {reason(error.__cause__ or error)}") from error
    except MisconfigurationException as error:
        raise ConfigError(f"trainer: {reason(error)}") from error
    trainer.strategy.checkpoint_io = WholeCheckpoints()
    return trainer


def _quieten() -> None:
    """Leave out Lightning's advertisements and advice that does not apply here."""
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    ours = "It is recommended to use .self.log"  # our metrics are synchronised by torchmetrics
    known = ("LeafSpec", "smaller than the logging interval", "does not have many workers", ours,
             "exists and is not empty")  # fmt: skip
    for message in known:
        warnings.filterwarnings("ignore", f".*{message}.*")


def fit(trainer: pl.Trainer, classifier: Classifier, data: ImageData, resume: Path | None) -> None:
    """Train, then take the weights of the best epoch.

    Raises:
        StorageError: something cannot be written; what was written before is whole.
    """
    if resume is not None:
        checkpoint.read(resume, allow=[classifier.spec.arch.get("_target_", "")])
    try:
        with storage_errors():
            trainer.fit(classifier, datamodule=data, ckpt_path=resume, weights_only=True)
    except MisconfigurationException as error:
        raise ConfigError(f"trainer: {reason(error)}") from error
    best = trainer.checkpoint_callback.best_model_path  # type: ignore[union-attr]
    if not best:
        raise ConfigError("training ended before its first validation, so there is no best epoch")
    classifier.model.load_state_dict(checkpoint.read_weights(best))


def test(trainer: pl.Trainer, classifier: Classifier, data: ImageData) -> float:
    """Accuracy on the test set, a fraction."""
    with storage_errors():
        figures = trainer.test(classifier, datamodule=data, verbose=False)[0]
    return round(float(figures["test/acc"]), 6)  # float32 knows no more


def finished(classifier: Classifier) -> nn.Module:
    """The network as `load_model` would return it: on the CPU, evaluating, in default layout."""
    model = classifier.model.cpu().to(memory_format=torch.contiguous_format).eval()
    model.model_spec = classifier.spec  # type: ignore[assignment]
    return model


@contextmanager
def begun(trainer: pl.Trainer, config: DictConfig, run_dir: Path, anew: bool) -> Iterator[None]:
    """Make room for a run and write its resolved configuration, for as long as it is under way.

    If it starts `anew`, what an earlier run left in the same directory is removed, so that nothing
    of it can pass for the new one's; and if it fails before its first step, nothing is left of it.
    """
    if trainer.is_global_zero:
        if anew and clear(run_dir) and config.resume is None:
            warnings.warn(f"{run_dir} holds an earlier run, which this one replaces", stacklevel=3)
        run_dir.mkdir(parents=True, exist_ok=True)
        write_whole(run_dir / "config.yaml", OmegaConf.to_yaml(config, resolve=True))
    try:
        yield
    except Exception:
        if trainer.is_global_zero and anew and not trainer.global_step:
            clear(run_dir)
        raise


def clear(run_dir: Path) -> bool:
    """Remove what a run writes; whether there was anything."""
    found = [file for name in RUN_FILES for file in run_dir.glob(name)]
    for file in found:
        file.unlink()
    with suppress(OSError):  # not there, or it holds files of others
        (run_dir / "checkpoints").rmdir()
    return bool(found)


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
