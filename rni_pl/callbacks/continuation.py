"""Going on after an interruption with the draws and the batch that were next."""

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.utilities import rank_zero_warn


class Continuation(pl.Callback):
    """Keeps torch's random states in checkpoints, for dropout and the like, precision and data.

    Data needs none of it, since order and augmentation follow from seed, epoch and batch: there
    the place in the epoch is enough. It comes from Lightning's count of batches.
    """

    def __init__(self) -> None:
        self._device = torch.device("cpu")
        self._precision = ""
        self._saved: dict[str, Any] = {}
        self._max_steps = -1
        self._images: list[int] = []
        self._patience: dict[EarlyStopping, int] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Note where the network draws, how it computes, on what, and what callbacks were given."""
        self._device = trainer.strategy.root_device
        self._precision = trainer.precision
        self._images = getattr(trainer.datamodule, "sizes", [])  # type: ignore[attr-defined]
        stopping = trainer.early_stopping_callbacks
        self._patience = {one: one.patience for one in stopping}

    def state_dict(self) -> dict[str, Any]:
        """The states of the CPU and of this device, as tensors; precision and numbers of images."""
        states: dict[str, Any] = {"cpu": torch.get_rng_state(), "precision": self._precision}
        states["images"] = self._images
        if self._device.type != "cpu":
            device = torch.get_device_module(self._device)
            states[self._device.type] = device.get_rng_state()
        return states

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Note the states for the start of training."""
        self._saved = state_dict

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep what is configured now where Lightning would restore what a run began with.

        It would lose an epoch to `max_steps` as it restores its loops.
        """
        for stopping, patience in self._patience.items():
            stopping.patience = patience
        self._max_steps = trainer.max_steps
        trainer.fit_loop.epoch_loop.max_steps = -1

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go on with the states of the checkpoint, at its place in the epoch."""
        loop = trainer.fit_loop
        loop.epoch_loop.max_steps = self._max_steps
        if loop.restarting:  # its last epoch is not over
            done = loop.epoch_loop.batch_progress.current.ready
            loader: Any = trainer.train_dataloader
            loader.load_state_dict({"epoch": trainer.current_epoch, "done": done})
        saved, self._saved = self._saved, {}
        self._warn_of_precision(saved.get("precision", self._precision))
        if "cpu" in saved:
            torch.set_rng_state(saved["cpu"])
        if self._device.type in saved and self._device.type != "cpu":
            torch.get_device_module(self._device).set_rng_state(saved[self._device.type])

    def _warn_of_precision(self, before: str) -> None:
        """``auto`` stands for other precisions on other machines, and figures depend on it."""
        if before != self._precision:
            rank_zero_warn(
                f"the run began in precision {before} and goes on in {self._precision}: its "
                f"figures will be those of neither; trainer.precision={before} goes on as it began"
            )
