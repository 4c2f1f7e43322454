"""BatchNorm over the images of all processes, as if one process had the whole batch.

torch's SyncBatchNorm needs GPUs and takes a layer's raw weight for its scale; this works on every
backend of `torch.distributed` and for SigBN too. The layers keep their class, parameters and
buffers, so that whatever reads or saves the network sees no difference.
"""

from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rni_pl.norm import SigmoidBatchNorm2d, after_norm, scale


def synchronise(model: nn.Module) -> None:
    """Let every BatchNorm layer of `model` train on the statistics of all processes' images.

    Each process may have another number of images, but at least one. Outputs, gradients and running
    statistics are those of one process with all of them, up to rounding. `separate` undoes it.

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
        plain = type(layer).forward in (_BatchNorm.forward, SigmoidBatchNorm2d.forward)
        if not (plain or _has_activation(layer)):
            raise ValueError(f"{type(layer).__name__} does more than BatchNorm")


def _layers(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def _has_activation(layer: nn.Module) -> bool:
    """Whether this is timm's BatchNorm with dropout and activation, or ours."""
    return isinstance(layer, nn.BatchNorm2d) and bool(after_norm(layer))


def _forward(layer: Any, input: Tensor) -> Tensor:
    if not (layer.training and dist.is_initialized() and dist.get_world_size() > 1):
        return type(layer).forward(layer, input)
    layer._check_input_dim(input)
    output = _normalise(layer, input)
    return layer.act(layer.drop(output)) if _has_activation(layer) else output


def _normalise(layer: Any, input: Tensor) -> Tensor:
    """Normalise (N, C, ...) with the mean and variance of all processes' images."""
    mean, var, count = _statistics(input)
    if layer.track_running_stats:
        _track(layer, mean.detach(), var.detach(), count)
    # In float64, per channel: what is lost to rounding is lost in the native layer too.
    factor = (var + layer.eps).rsqrt()
    if layer.affine:
        factor = factor * scale(layer)
    shift = -mean * factor
    if layer.bias is not None:
        shift = shift + layer.bias
    shape = (1, -1) + (1,) * (input.ndim - 2)
    dtype = torch.promote_types(input.dtype, torch.float32)
    factor, shift = factor.to(dtype).view(shape), shift.to(dtype).view(shape)
    return torch.addcmul(shift, input.to(dtype), factor).to(input.dtype)


def _statistics(input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance of each channel, (C,) in float64, and the number of values."""
    values = input.to(torch.promote_types(input.dtype, torch.float32))
    dims = [0, *range(2, input.ndim)]
    var, mean = (figure.double() for figure in torch.var_mean(values, dims, correction=0))
    count = input.numel() // input.shape[1]
    sums = count * torch.cat([mean, var + mean.square(), mean.new_ones(1)])
    total = _Sum.apply(sums)
    mean, square = (total[:-1] / total[-1]).chunk(2)
    return mean, (square - mean.square()).clamp_min(0), total[-1].detach()


@torch.no_grad()
def _track(layer: Any, mean: Tensor, var: Tensor, count: Tensor) -> None:
    layer.num_batches_tracked.add_(1)
    momentum = layer.momentum
    if momentum is None:
        momentum = 1.0 / float(layer.num_batches_tracked)
    unbiased = var * count / (count - 1)
    layer.running_mean.lerp_(mean.to(layer.running_mean.dtype), momentum)
    layer.running_var.lerp_(unbiased.to(layer.running_var.dtype), momentum)


class _Sum(torch.autograd.Function):
    """The sum over all processes, and its gradient."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Sum.apply(gradient)
