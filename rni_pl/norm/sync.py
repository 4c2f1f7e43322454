"""Letting BatchNorm layers share their statistics between processes.

torch's SyncBatchNorm needs GPUs and takes a layer's raw weight for its scale; this works on every
backend of `torch.distributed` and for SigBN too. The layers keep their class, parameters and
buffers, so that whatever reads or saves the network sees no difference.
"""

from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rni_pl.norm import SigmoidSyncBatchNorm, after_norm, scale
from rni_pl.norm.shared_statistics import normalise, shares


def synchronise(model: nn.Module) -> None:
    """Let every BatchNorm layer of `model` train on the statistics of all processes' images.

    Each process may have another number of images, but at least one. Outputs, gradients and running
    statistics are those of one process with all of them, up to rounding. `separate` undoes it.
    Layers that synchronise by themselves are left alone.

    Raises:
        ValueError: see `check`.
    """
    check(model)
    for layer in _layers(model):
        layer.forward = partial(_forward, layer)


def separate(model: nn.Module) -> None:
    """Let every layer compute its own statistics again."""
    for layer in _layers(model):
        layer.__dict__.pop("forward", None)


def check(model: nn.Module) -> None:
    """Raise `ValueError` where a subclass of BatchNorm computes more, which would be lost."""
    for layer in _layers(model):
        if after_norm(layer) is None:
            raise ValueError(f"{type(layer).__name__} does more than BatchNorm")


def _layers(model: nn.Module) -> list[Any]:
    themselves = (nn.SyncBatchNorm, SigmoidSyncBatchNorm)
    norms = (module for module in model.modules() if isinstance(module, _BatchNorm))
    return [norm for norm in norms if not isinstance(norm, themselves)]


def _forward(layer: Any, input: Tensor) -> Tensor:
    if not shares(layer):
        return type(layer).forward(layer, input)
    layer._check_input_dim(input)
    output = normalise(layer, scale(layer) if layer.affine else None, input)
    return layer.act(layer.drop(output)) if after_norm(layer) else output
