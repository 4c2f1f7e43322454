"""Folding BatchNorm and SigBN into the convolutions in front of them, for evaluation."""

import copy
from collections import Counter, OrderedDict
from collections.abc import Iterator
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.nn.utils.parametrize import is_parametrized

from rni_pl.norm import after_norm, scale
from rni_pl.pruning.modes import evaluating
from rni_pl.pruning.tracing import trace


@torch.no_grad()
def fold(model: nn.Module, example: Tensor) -> nn.Module:
    """A copy, in evaluation mode, whose convolutions do the work of the norm layers behind them.

    A norm layer is folded where it alone reads the output of a convolution, and each of the two is
    called once and bare; every other one stays as it is. Where timm's BatchNorm carries an
    activation, the activation stays. `example` is a batch of images, for tracing.

    Raises:
        PruningError: `torch.fx` cannot trace the network.
    """
    model = _copied(model, example).eval()
    left: dict[nn.Module, nn.Module] = {}
    for conv, norm in _pairs(model, example):
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight,
            conv.bias,
            norm.running_mean,  # type: ignore[arg-type]
            norm.running_var,  # type: ignore[arg-type]
            norm.eps,
            scale(norm) if norm.affine else None,
            norm.bias,
        )
        left[norm] = nn.Sequential(OrderedDict(after_norm(norm) or {}))
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if child in left:
                module._modules[name] = left[child]
    return model


def _copied(model: nn.Module, example: Tensor) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except RuntimeError:  # the older weight_norm keeps what it computed, with its gradients' graph
        with evaluating(model):
            model(example)  # computed without gradients, it can be copied
        return copy.deepcopy(model)


def _pairs(model: nn.Module, example: Tensor) -> Iterator[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Convolutions and the norm layers that can be folded into them."""
    graph = trace(model, (example,)).graph
    calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    # A layer whose parameters are also read elsewhere is not called once, either.
    calls.update(str(n.target).rpartition(".")[0] for n in graph.nodes if n.op == "get_attr")
    for node in graph.nodes:
        if node.op != "call_module" or [n.op for n in node.all_input_nodes] != ["call_module"]:
            continue
        before = node.all_input_nodes[0]
        conv, norm = (model.get_submodule(str(n.target)) for n in (before, node))
        alone = len(before.users) == calls[str(before.target)] == calls[str(node.target)] == 1
        if alone and is_plain_conv(conv) and _computes_norm(norm):
            yield conv, norm


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
