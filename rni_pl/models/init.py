"""The initialisation that the method's networks start from."""

import math

from torch import nn

from rni_pl.norm import convert_batchnorm


def initialise(model: nn.Module, norm: str) -> nn.Module:
    """Initialise a freshly built network in place, give it its norm layers and return it.

    Convolutions: normal, std sqrt(2 / (k * k * out_channels)); linear layers: normal, std 0.01;
    biases 0; BatchNorm scales 0.5; SigBN scales N(0, 1). Norm layers come last, so that one seed
    gives the same convolutions with either kind.

    Raises:
        ValueError: `norm` is neither ``"bn"`` nor ``"sigbn"``.
    """
    if norm not in ("bn", "sigbn"):
        raise ValueError(f"norm={norm!r} is unknown; allowed: 'bn', 'sigbn'")
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, 0.5)
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    return convert_batchnorm(model) if norm == "sigbn" else model
