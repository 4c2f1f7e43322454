"""The sparsity regulariser in training."""

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from rni_pl import norm
from rni_pl.callbacks.packages import BASES
from rni_pl.errors import ConfigError
from rni_pl.regularisers import Regulariser


class SparsityRegulariser(*BASES):  # type: ignore[misc]
    """Adds the penalty's closed-form gradient to the BatchNorm scales before every optimiser step.

    At that point Lightning has unscaled the gradients, averaged them over devices and summed them
    over accumulated batches, so the penalty counts once a step and needs no graph of its own.

    Logs, once an epoch, ``sparsity/penalty`` (weighted) and ``sparsity/receded_0.01`` and
    ``_0.1``: the share of all channels whose effective scale is below that size.
    """

    def __init__(self, regulariser: Regulariser) -> None:
        super().__init__()
        if not isinstance(regulariser, Regulariser):
            raise TypeError(f"regulariser must be a Regulariser, not {type(regulariser).__name__}")
        self.regulariser = regulariser

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Raise `ConfigError` where no scale is trained, or layers are not the regulariser's."""
        if not trainable_scales(pl_module):
            raise ConfigError("the network has no BatchNorm whose scales are trained to regularise")
        wanted = self.regulariser.norm
        kinds = {norm.norm_kind(layer) for _, layer in norm.scaled_norms(pl_module)}
        if kinds != {wanted}:
            found = " and ".join(norm.NAMES[kind] for kind in sorted(kinds))
            raise ConfigError(
                f"{type(self.regulariser).__name__} is for scales of {norm.NAMES[wanted]}, the "
                f"network has {found}: see rni_pl.convert_batchnorm"
            )

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any
    ) -> None:
        """Add the gradient."""
        add_gradient(pl_module, self.regulariser)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log penalty and receded channels."""
        with torch.no_grad():
            penalty = self.regulariser.penalty(torch.cat(trainable_scales(pl_module)))
        sizes = torch.cat(list(norm.scale_sizes(pl_module).values()))
        pl_module.log("sparsity/penalty", penalty)
        for limit in (0.01, 0.1):
            pl_module.log(f"sparsity/receded_{limit}", (sizes < limit).float().mean())


@torch.no_grad()
def add_gradient(model: nn.Module, regulariser: Regulariser) -> None:
    """Add the penalty's gradient to the gradients of every trainable BatchNorm scale of `model`."""
    scales = trainable_scales(model)
    if not scales:
        return
    gradient = regulariser.gradient(torch.cat([scale.detach() for scale in scales]))
    parts = gradient.split([scale.numel() for scale in scales])
    for scale, part in zip(scales, parts, strict=True):
        if scale.grad is None:
            scale.grad = part.clone()
        else:
            scale.grad += part


def trainable_scales(model: nn.Module) -> list[Tensor]:
    """Raw scales (gamma) of every BatchNorm and SigBN that are being trained."""
    return [m.weight for _, m in norm.scaled_norms(model) if m.weight.requires_grad]
