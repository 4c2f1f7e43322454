"""One-shot pruning before fine-tuning."""

from typing import Any

import pytorch_lightning as pl
import torch

from rni_pl.classifier import Classifier
from rni_pl.errors import ConfigError
from rni_pl.norm.calibration import recalibrate
from rni_pl.progress import busy, track
from rni_pl.pruning import PruningOptions, PruningReport, prune


class OneShotPruning(pl.Callback):
    """Prunes the loaded model the first time that a trainer sets it up.

    `setup` runs before the strategy wraps the model and before optimisers exist. Every rank prunes
    the same weights, on the CPU, with the same images where images are needed, and comes to the
    same network.

    Args:
        ratio: see `rni_pl.pruning.prune`.
        scope: see `rni_pl.pruning.prune`.
        absorb: fold in the constants of removed channels, measured on a training batch.
        recalibrate: re-estimate BatchNorm statistics on this many training batches; 0: do not.
        options: further arguments of `rni_pl.pruning.prune`.
    """

    def __init__(
        self,
        ratio: float | str,
        scope: str = "global",
        absorb: bool = False,
        recalibrate: int = 0,
        **options: Any,
    ) -> None:
        self.options = PruningOptions(ratio, scope, **options)
        self.absorb = absorb
        self.recalibrate = recalibrate
        self.report: PruningReport | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Replace the module's network by the smaller one."""
        if self.report is not None:
            return
        if not isinstance(pl_module, Classifier):
            raise TypeError(f"OneShotPruning needs a Classifier, not {type(pl_module).__name__}")
        model = pl_module.model.cpu()
        dtype = next(model.parameters()).dtype  # not float32 where trainer.precision ends in -true
        example = torch.zeros(1, *pl_module.spec.image_shape, dtype=dtype)
        if self.absorb:
            (example,) = (images.to(dtype) for images in _training_images(trainer, 1))
        with busy("pruning"):
            pruned, self.report = prune(model, example, **vars(self.options), absorb=self.absorb)
        if self.recalibrate:
            batches = (images.to(dtype) for images in _training_images(trainer, self.recalibrate))
            recalibrate(pruned, track(batches, "recalibrating", self.recalibrate))
        pl_module.replace_model(pruned)


def _training_images(trainer: pl.Trainer, batches: int) -> Any:
    """The same few batches of images on every rank."""
    source = getattr(trainer.datamodule, "calibration_batches", None)  # type: ignore[attr-defined]
    if source is None:
        raise ConfigError(
            "prune.absorb and prune.recalibrate need a data module with calibration_batches(count)"
        )
    return source(batches)
