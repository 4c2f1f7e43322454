"""Torch's random states, for networks that draw numbers as they train."""

from typing import Any

import pytorch_lightning as pl
import torch


class RandomState(pl.Callback):
    """Keeps torch's random states in checkpoints: dropout goes on with the draws that were next.

    Data needs none of it: order and augmentation follow from seed, epoch and place.
    """

    def __init__(self) -> None:
        self._device = torch.device("cpu")
        self._saved: dict[str, Any] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Note where the network draws."""
        self._device = trainer.strategy.root_device

    def state_dict(self) -> dict[str, Any]:
        """The states of the CPU and of this device, as tensors."""
        states = {"cpu": torch.get_rng_state()}
        if self._device.type != "cpu":
            device = torch.get_device_module(self._device)
            states[self._device.type] = device.get_rng_state()
        return states

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Note the states for the start of training."""
        self._saved = state_dict

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go on with the states of the checkpoint."""
        saved, self._saved = self._saved, {}
        if "cpu" in saved:
            torch.set_rng_state(saved["cpu"])
        if self._device.type in saved and self._device.type != "cpu":
            torch.get_device_module(self._device).set_rng_state(saved[self._device.type])
