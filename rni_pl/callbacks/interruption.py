"""Stopping training on a signal, where it can go on as if it had never stopped."""

import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl

from rni_pl.errors import Interrupted

AGAIN = 1.0  # seconds after which a second signal is meant as one


class StopOnSignal(pl.Callback):
    """Ends training with `Interrupted` after SIGINT or SIGTERM, once the present step is saved.

    Towards the end of an epoch, where validation and the epoch's own checkpoint follow, these come
    first. A second signal stops at once; the last checkpoint is whole then as well.

    Args:
        file: where to save.
        every_n_steps: how often several processes agree on whether to stop.
    """

    def __init__(self, file: Path, every_n_steps: int = 10) -> None:
        self.file = file
        self.every_n_steps = every_n_steps
        self._signal: int | None = None
        self._since = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take signals over from Lightning, which gives them back at the end."""
        self._signal = None
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                signal.signal(signum, self._note)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self._signal is not None and time.monotonic() - self._since > AGAIN:
            raise Interrupted(signum)
        if self._signal is None:
            self._signal, self._since = signum, time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any,
        batch_idx: int,
    ) -> None:  # fmt: skip
        """Save and stop, between two steps of the optimiser with no validation between."""
        done = batch_idx + 1
        validates = trainer.val_check_batch and done % trainer.val_check_batch == 0
        if trainer.is_last_batch or validates or done % trainer.accumulate_grad_batches:
            return
        if trainer.world_size > 1 and trainer.global_step % self.every_n_steps:
            return
        if self._asked(trainer):
            trainer.save_checkpoint(self.file, weights_only=False)  # optimiser and all
            self._stop()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop after the checkpoint of the epoch before."""
        if self._asked(trainer):
            self._stop()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop after the checkpoint of the last epoch."""
        if self._asked(trainer):
            self._stop()

    def _asked(self, trainer: pl.Trainer) -> bool:
        asked = self._signal is not None
        return trainer.strategy.reduce_boolean_decision(asked, all=False)

    def _stop(self) -> None:
        raise Interrupted(self._signal or signal.SIGTERM)
