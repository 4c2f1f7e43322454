"""What a run says of itself where no bar is drawn."""

import time
from typing import Any, cast

import pytorch_lightning as pl


class EpochLines(pl.Callback):
    """Prints a line after every epoch: training loss, validation accuracy, seconds."""

    def __init__(self) -> None:
        self._since = time.perf_counter()
        self._validated = False

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._since, self._validated = time.perf_counter(), False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note that this epoch has an accuracy of its own."""
        self._validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the line, from the first process only."""
        # Both in every process, since they may wait for one another; the loss is logged later.
        figures, metrics = trainer.callback_metrics, cast(Any, pl_module.metrics)
        loss = metrics["train_metrics"]["train/loss"]
        said = [f"train loss {float(loss.compute()):.4f}"] if loss.update_called else []
        if self._validated:
            said.append(f"val acc {float(figures['val/acc']):.2%}")
        if "macs" in figures:
            said.append(f"{float(figures['macs']) / 1e6:.1f} M MACs")
        said.append(f"{time.perf_counter() - self._since:.1f} s")
        if trainer.is_global_zero:
            number = f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}"
            print(f"{number}: {', '.join(said)}", flush=True)
