"""What a run did, epoch by epoch."""

import time
from dataclasses import asdict, dataclass, field
from typing import Any

import pytorch_lightning as pl


@dataclass
class Record:
    """Figures of a run so far; accuracies are fractions, one an epoch.

    `seconds` is time spent training and validating, `train_seconds` without validation.
    """

    val_acc: list[float] = field(default_factory=list)
    test_acc: list[float] = field(default_factory=list)
    seconds: float = 0.0
    train_seconds: float = 0.0
    images: int = 0

    @property
    def best_epoch(self) -> int:
        """Epoch (counted from 0) with the best validation accuracy, the first of equals."""
        return max(range(len(self.val_acc)), key=lambda epoch: self.val_acc[epoch])


class History(pl.Callback):
    """Keeps a `Record`; its state travels in the checkpoint, so that a resumed run adds to it."""

    def __init__(self) -> None:
        self.record = Record()
        self._epoch_start = self._fit_start = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._epoch_start = time.perf_counter()
        self._validation = 0.0

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock of training."""
        self._validation_start = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the epoch's accuracies, before checkpoints are written at the end of the epoch."""
        if trainer.sanity_checking:
            return
        now = time.perf_counter()
        self.record.seconds += now - self._epoch_start
        self.record.train_seconds += self._validation_start - self._epoch_start
        self._epoch_start = now
        self.record.images += _images_per_epoch(trainer)
        self.record.val_acc.append(_metric(trainer, "val/acc"))
        if len(trainer.val_dataloaders or []) > 1 and isinstance(trainer.val_dataloaders, list):
            self.record.test_acc.append(_metric(trainer, "test/acc"))

    def state_dict(self) -> dict[str, Any]:
        """The log, in plain values."""
        return asdict(self.record)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a saved log."""
        self.record = Record(**state_dict)


def _metric(trainer: pl.Trainer, name: str) -> float:
    return round(float(trainer.callback_metrics[name]), 6)  # float32 knows no more


def _images_per_epoch(trainer: pl.Trainer) -> int:
    batches = int(trainer.num_training_batches)
    datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
    return min(datamodule.train_size, batches * datamodule.batch_size)
