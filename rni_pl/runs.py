"""What both stages share: data, trainer and the files of a run directory."""

import json
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pytorch_lightning.callbacks import ModelCheckpoint, RichModelSummary, RichProgressBar
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn

from rni_pl import checkpoint
from rni_pl.classifier import Classifier
from rni_pl.config import plain
from rni_pl.data import ImageData
from rni_pl.errors import ConfigError, RniError
from rni_pl.models.build import check_trusted
from rni_pl.norm import SigmoidBatchNorm2d

# Values of the data configuration that concern one run alone.
NOT_INHERITED = ("_target_", "source", "seed")


def make(node: DictConfig, what: str) -> Any:
    """Instantiate a configuration node; a mistake in it is the user's, named in one line."""
    try:
        return instantiate(node)
    except InstantiationException as error:
        cause = error.__cause__ or error
        if isinstance(cause, RniError):
            raise cause from error
        raise ConfigError(f"{what}: {str(cause).splitlines()[0]}") from error


def make_data(config: DictConfig, watch_test: bool = False) -> ImageData:
    """The data module, loaded: whatever is wrong with the data shows before anything is trained."""
    data = make(config.data, "data")
    data.watch_test = watch_test
    data.prepare_data()
    data.setup("fit")
    return data


def plain_data_values(config: DictConfig) -> dict[str, Any]:
    """The data configuration in plain values, as a checkpoint carries it."""
    return {key: value for key, value in plain(config.data).items() if key not in NOT_INHERITED}


def check_norms(config: DictConfig, model: nn.Module) -> None:
    """Refuse torch's SyncBatchNorm for networks with SigBN: it would take gamma for the scale."""
    if config.trainer.sync_batchnorm and any(
        isinstance(module, SigmoidBatchNorm2d) for module in model.modules()
    ):
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
    checkpoints = ModelCheckpoint(
        run_dir / "checkpoints",
        filename="best",
        monitor="val/acc",
        mode="max",
        save_last=True,
        enable_version_counter=False,
        auto_insert_metric_name=False,
    )
    logger = TensorBoardLogger(run_dir, name="", version="", default_hp_metric=False)
    node = OmegaConf.create(arguments)
    try:
        return instantiate(node, callbacks=[*callbacks, checkpoints], logger=logger)
    except InstantiationException as error:
        raise ConfigError(f"trainer: {str(error.__cause__ or error).splitlines()[0]}") from error
    except MisconfigurationException as error:
        raise ConfigError(f"trainer: {str(error).splitlines()[0]}") from error


def _quieten() -> None:
    """Leave out Lightning's advertisements and advice that does not apply here."""
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    ours = "It is recommended to use .self.log"  # our metrics are synchronised by torchmetrics
    known = ("LeafSpec", "smaller than the logging interval", "does not have many workers", ours)
    for message in known:
        warnings.filterwarnings("ignore", f".*{message}.*")


def fit(trainer: pl.Trainer, classifier: Classifier, data: ImageData, resume: Path | None) -> None:
    """Train, then take the weights of the best epoch."""
    trainer.fit(classifier, datamodule=data, ckpt_path=resume, weights_only=True)
    best = trainer.checkpoint_callback.best_model_path  # type: ignore[union-attr]
    classifier.model.load_state_dict(checkpoint.read_weights(best))


def test(trainer: pl.Trainer, classifier: Classifier, data: ImageData) -> float:
    """Accuracy on the test set, a fraction."""
    accuracy = trainer.test(classifier, datamodule=data, verbose=False)[0]["test/acc"]
    return round(float(accuracy), 6)  # float32 knows no more


def finished(classifier: Classifier) -> nn.Module:
    """The network as `load_model` would return it: on the CPU, evaluating, in default layout."""
    return classifier.model.cpu().to(memory_format=torch.contiguous_format).eval()


def write_config(config: DictConfig, run_dir: Path) -> None:
    """Write the resolved configuration of a run."""
    run_dir.mkdir(parents=True, exist_ok=True)
    write_whole(run_dir / "config.yaml", OmegaConf.to_yaml(config, resolve=True))


def write_summary(summary: dict[str, Any], run_dir: Path) -> None:
    """Write the figures of a finished run."""
    write_whole(run_dir / "summary.json", json.dumps(summary, indent=2) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def resume_from(config: DictConfig) -> Path | None:
    """The `last.ckpt` that a run continues from, if it does."""
    if config.resume is None:
        return None
    last = Path(config.resume) / "checkpoints" / "last.ckpt"
    if not last.is_file():
        raise ConfigError(f"resume={config.resume} holds no checkpoints/last.ckpt")
    return last


def resumed_config(config: DictConfig, overrides: list[str]) -> DictConfig:
    """The configuration that the run to continue was started with, and what was given anew.

    A configuration found in a run directory may name only our own code and trusted networks.
    """
    file = Path(config.resume) / "config.yaml"
    try:
        stored = OmegaConf.load(file)
        given = [item for item in overrides if not item.startswith(("resume=", "hydra."))]
        merged = OmegaConf.merge(stored, OmegaConf.from_dotlist(given), {"resume": config.resume})
    except (OSError, OmegaConfBaseException) as error:
        raise ConfigError(f"resume={config.resume}: no sound config.yaml there") from error
    assert isinstance(merged, DictConfig)
    _check_targets(merged, config)
    return merged


def _check_targets(stored: DictConfig, given: DictConfig) -> None:
    for group in ("data", "data.source", "method", "trainer"):
        target = OmegaConf.select(stored, f"{group}._target_")
        known = OmegaConf.select(given, f"{group}._target_")
        ours = target is None or (str(target).startswith("rni_pl.") and target.count(".") == 2)
        if target != known and not ours:
            raise ConfigError(f"resume={given.resume}: {group}._target_={target} is not trusted")
    arch = OmegaConf.select(stored, "arch")
    if arch is not None and arch != OmegaConf.select(given, "arch"):
        check_trusted(plain(arch), given.get("allow", []))
