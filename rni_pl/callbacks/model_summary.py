"""What is about to be trained, in the terms of the table at the end."""

from typing import Any

import pytorch_lightning as pl

from rni_pl import norm
from rni_pl.cost import macs, parameter_count


class ModelSummary(pl.Callback):
    """Prints a line before training: parameters, multiply-accumulates of one image, channels."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the line, from the first process only."""
        if not trainer.is_global_zero:
            return
        classifier: Any = pl_module
        model, spec = classifier.model, classifier.spec
        channels = sum(len(sizes) for sizes in norm.scale_sizes(model).values())
        print(
            f"{spec.arch_name if spec.arch else type(model).__name__}: "
            f"{parameter_count(model):,} parameters, {macs(model, spec.image_shape):,} MACs, "
            f"{channels:,} channels with scales",
            flush=True,
        )
