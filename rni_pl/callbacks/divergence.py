"""Stopping a run whose loss is no number any more."""

from typing import Any, NoReturn

import pytorch_lightning as pl
import torch
from torch import Tensor

from rni_pl.errors import DivergenceError


class StopOnDivergence(pl.Callback):
    """Raises `DivergenceError` once the training loss, or a weight, is NaN or infinite.

    Notes the first such step on the device and looks every `every_n_steps`, and before anything
    is validated or saved, so that no step waits for the device. Weights are looked at before they
    are saved: the last step of an epoch may ruin them with a loss that was finite.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        self.every_n_steps = every_n_steps
        self._first: Tensor | None = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any
    ) -> None:
        """Note a loss that is not finite."""
        loss = outputs["loss"].detach()
        if self._first is None:
            self._first = torch.full((), torch.inf, device=loss.device)
        step = torch.where(torch.isfinite(loss), torch.inf, float(trainer.global_step))
        self._first = torch.minimum(self._first, step)
        if trainer.global_step % self.every_n_steps == 0:
            self._look(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look before checkpoints are written."""
        self._look(trainer)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Let nothing overwrite the last good checkpoint."""
        self._look(trainer)
        values = [t for t in checkpoint["state_dict"].values() if t.is_floating_point()]
        if values and not torch.stack([t.isfinite().all() for t in values]).all():
            self._stop(trainer, f"the weights are not finite after step {trainer.global_step}")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look a last time."""
        self._look(trainer)

    def _look(self, trainer: pl.Trainer) -> None:
        if self._first is None:
            return
        first = trainer.strategy.reduce(self._first, reduce_op=torch.distributed.ReduceOp.MIN)  # type: ignore[arg-type]
        if not torch.isfinite(first):
            return
        self._stop(trainer, f"the loss is not finite since step {int(first)}")

    def _stop(self, trainer: pl.Trainer, what: str) -> NoReturn:
        rates = ", ".join(f"{group['lr']:g}" for group in trainer.optimizers[0].param_groups)
        raise DivergenceError(
            f"{what} (learning rates now: {rates}); the last good checkpoint is kept"
        )
