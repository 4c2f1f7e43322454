"""Re-estimating BatchNorm statistics after channels were removed."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from rni_pl.modes import evaluating


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Iterable[Tensor]) -> int:
    """Set the running statistics of every BatchNorm to their average over batches of images.

    A layer that is called several times for an image gets the average over all its calls. Works
    in place, on batches of shape (N, C, H, W) on the model's device, and gives the number
    of batches seen; with none, nothing changes. Nothing but the statistics is changed.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    norms = [m for m in norms if m.track_running_stats]
    momenta = {m: m.momentum for m in norms}
    calls = dict.fromkeys(norms, 0)

    def average(norm: nn.Module, _: object) -> None:
        calls[norm] += 1  # type: ignore[index]
        norm.momentum = 1.0 / calls[norm]  # type: ignore[index]  # the first call replaces all

    hooks = [m.register_forward_pre_hook(average) for m in norms]
    count = 0
    try:
        with evaluating(model):  # dropout stays off, inside of norm layers, too
            for m in norms:
                m.training = True
            for images in batches:
                model(images)
                count += 1
    finally:
        for hook in hooks:
            hook.remove()
        for m, momentum in momenta.items():
            m.momentum = momentum
    return count
