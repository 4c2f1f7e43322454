"""Folding BatchNorm and SigBN into the convolutions in front of them, for evaluation."""

from collections import OrderedDict
from collections.abc import Iterator
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.nn.utils.parametrize import is_parametrized

from rni_pl.norm import after_norm, scale
from rni_pl.pruning.copying import Parts
from rni_pl.pruning.dependency import DependencyGraph
from rni_pl.pruning.surgery import Cut, remove
from rni_pl.pruning.trace import trace


@torch.no_grad()
def fold(model: nn.Module, example: Tensor) -> nn.Module:
    """A copy, in evaluation mode, whose convolutions do the work of the norm layers behind them.

    A norm layer is folded where only it reads the output of a convolution, and each of the two is
    called once and bare; every other one stays as it is. Where timm's BatchNorm carries an
    activation, the activation stays. `example` is a batch of images, for tracing.

    Raises:
        PruningError: the network cannot be run on the example, or be copied.
    """
    model = remove(Parts.of(model), Cut()).network.eval()
    left: dict[nn.Module, nn.Module] = {}
    for conv, norm in _pairs(model, trace(model, (example,))):
        weights = conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps
        scales = scale(norm) if norm.affine else None
        conv.weight, conv.bias = fuse_conv_bn_weights(*weights, scales, norm.bias)  # type: ignore
        left[norm] = nn.Sequential(OrderedDict(after_norm(norm) or {}))
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if child in left:
                module._modules[name] = left[child]
    return model


def _pairs(model: nn.Module, graph: DependencyGraph) -> Iterator[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Convolutions and the norm layers that can be folded into them."""
    for name in graph.layers:
        norm = model.get_submodule(name)
        maker = graph.maker_of(name) if _computes_norm(norm) else None
        conv = None if maker is None else model.get_submodule(maker)
        if conv is not None and is_plain_conv(conv):
            yield conv, norm  # type: ignore[misc]


def is_plain_conv(layer: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether this is a convolution with no ways of its own (timm's StdConv2d has such)."""
    kind = type(layer)
    return (
        issubclass(kind, nn.Conv2d)
        and is_bare(layer)
        and kind.forward is nn.Conv2d.forward
        and kind._conv_forward is nn.Conv2d._conv_forward
    )


def _computes_norm(layer: nn.Module) -> TypeGuard[nn.BatchNorm2d]:
    """Whether this is a BatchNorm2d, or SigBN, that evaluates with running statistics."""
    return (
        isinstance(layer, nn.BatchNorm2d)
        and is_bare(layer)
        and layer.running_mean is not None
        and after_norm(layer) is not None
    )


def is_bare(layer: nn.Module) -> bool:
    """Whether a layer has no hooks and no computed weights, which a new weight would break.

    The older weight_norm and spectral_norm of torch.nn.utils are hooks.
    """
    hooks = layer._forward_hooks or layer._forward_pre_hooks
    return not hooks and not is_parametrized(layer)
