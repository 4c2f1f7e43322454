"""One-shot pruning before fine-tuning."""

from collections.abc import Callable

import pytorch_lightning as pl
import torch
from torch import nn

from rni_pl.classifier import Classifier
from rni_pl.pruning import PruningReport

# What `rni_pl.pruning.prune` does once its ratio and options are given.
Pruner = Callable[[nn.Module, torch.Tensor], tuple[nn.Module, PruningReport]]


class OneShotPruning(pl.Callback):
    """Prunes the loaded model the first time that a trainer sets it up.

    `setup` runs before the strategy wraps the model and before optimisers exist. Every rank prunes
    the same weights, on the CPU, and comes to the same network.
    """

    def __init__(self, pruner: Pruner) -> None:
        self.pruner = pruner
        self.report: PruningReport | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Replace the module's network by the smaller one."""
        if self.report is not None:
            return
        if not isinstance(pl_module, Classifier):
            raise TypeError(f"OneShotPruning needs a Classifier, not {type(pl_module).__name__}")
        example = torch.zeros(1, *pl_module.spec.image_shape)
        pruned, self.report = self.pruner(pl_module.model.cpu(), example)
        pl_module.replace_model(pruned, self.report.structure)
