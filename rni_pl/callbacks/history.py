"""What a run did, epoch by epoch."""

import time
from dataclasses import asdict, replace
from typing import Any

import pytorch_lightning as pl

from rni_pl import norm
from rni_pl.callbacks.gradual_pruning import GradualPruning
from rni_pl.cost import macs
from rni_pl.runs.summary import Record


class History(pl.Callback):
    """Keeps a `Record`; its state travels in the checkpoint, so that a resumed run adds to it.

    Logs, once an epoch, ``images_per_second`` in training; with `costs`, for a network that
    shrinks, ``macs`` of one image and ``channels`` with scales.
    """

    def __init__(self, costs: bool = False) -> None:
        self.costs = costs
        self.record = Record()
        self._since: float | None = None  # where no epoch is trained, the clock never starts
        self._before = Record()
        self._trains = False  # rather than validates, or is between two epochs

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock, be it in the middle of an epoch."""
        self._before = replace(self.record)
        self._since = time.perf_counter()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock anew: what came between two epochs is not training."""
        self._before = replace(self.record)
        self._since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Count the images."""
        self._trains = True
        self.record.images += len(batch[1]) * trainer.world_size

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Training pauses."""
        if not trainer.sanity_checking:
            self.record.train_seconds += self._lap()
            self._trains = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the accuracies, before checkpoints are written at the end of the epoch."""
        if trainer.sanity_checking:
            return
        self._lap()
        cuts = [one.last_cut for one in trainer.callbacks if isinstance(one, GradualPruning)]  # type: ignore[attr-defined]
        self.record.since = max(cuts, default=0)
        self.record.val_acc.append(_metric(trainer, "val/acc"))
        self.record.epoch.append(trainer.current_epoch)
        if isinstance(trainer.val_dataloaders, list) and len(trainer.val_dataloaders) > 1:
            self.record.test_acc.append(_metric(trainer, "test/acc"))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count what was trained since the last validation, and log the epoch's throughput."""
        self.record.train_seconds += self._lap()
        self._trains = False
        seconds = self.record.train_seconds - self._before.train_seconds
        images = self.record.images - self._before.images
        pl_module.log("images_per_second", images / seconds)
        if self.costs:
            classifier: Any = pl_module
            self.record.macs.append(macs(classifier.model, classifier.spec.image_shape))
            channels = sum(len(sizes) for sizes in norm.scale_sizes(classifier.model).values())
            pl_module.log_dict({"macs": float(self.record.macs[-1]), "channels": float(channels)})

    def _lap(self) -> float:
        now = time.perf_counter()
        lap = 0.0 if self._since is None else now - self._since
        self._since = now
        self.record.seconds += lap
        return lap

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Count the time so far, in training if this is in the middle of an epoch."""
        lap = self._lap()
        self.record.train_seconds += lap * self._trains
        checkpoint["callbacks"][self.state_key] = self.state_dict()

    def state_dict(self) -> dict[str, Any]:
        """The record, in plain values."""
        return asdict(self.record)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a saved record."""
        self.record = Record(**state_dict)


def _metric(trainer: pl.Trainer, name: str) -> float:
    return round(float(trainer.callback_metrics[name]), 6)  # float32 knows no more
