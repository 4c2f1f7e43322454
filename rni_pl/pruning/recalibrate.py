"""Re-estimating BatchNorm statistics after channels were removed."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Iterable[Tensor]) -> int:
    """Set the running statistics of every BatchNorm to their average over batches of images.

    Works in place, on batches of shape (N, C, H, W) on the model's device, and gives the number
    of batches seen; with none, nothing changes. Nothing but the statistics is changed.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    norms = [m for m in norms if m.track_running_stats]
    modes = {module: module.training for module in model.modules()}
    momenta = {m: m.momentum for m in norms}
    count = 0
    model.eval()  # dropout stays off
    try:
        for images in batches:
            for m in norms:
                m.train()
                m.momentum = 1.0 / (count + 1)  # a plain average: the first batch replaces all
            model(images)
            count += 1
    finally:
        for m, momentum in momenta.items():
            m.momentum = momentum
        for module, training in modes.items():
            module.training = training
    return count
