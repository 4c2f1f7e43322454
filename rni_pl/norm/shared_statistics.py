"""BatchNorm on the statistics of all processes' images, as if one process had the whole batch."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def shares(layer: Any) -> bool:
    """Whether a BatchNorm layer trains now, and other processes do with it."""
    if not (layer.training and dist.is_available() and dist.is_initialized()):
        return False
    return dist.get_world_size(group_of(layer)) > 1


def group_of(layer: Any) -> Any:
    """The processes that train with it, where it is a SyncBatchNorm that names them; None: all."""
    return getattr(layer, "process_group", None)


def normalise(layer: Any, scale: Tensor | None, input: Tensor) -> Tensor:
    """Normalise (N, C, ...) with the mean and variance of all processes' images.

    `scale`, shape (C,), is what the layer multiplies each channel by; its bias is added.
    """
    mean, var, count = _statistics(input, group_of(layer))
    if layer.track_running_stats:
        _track(layer, mean.detach(), var.detach(), count)
    # In float64, per channel: what is lost to rounding is lost in the native layer too.
    factor = (var + layer.eps).rsqrt()
    if scale is not None:
        factor = factor * scale
    shift = -mean * factor
    if layer.bias is not None:
        shift = shift + layer.bias
    shape = (1, -1) + (1,) * (input.ndim - 2)
    dtype = torch.promote_types(input.dtype, torch.float32)
    factor, shift = factor.to(dtype).view(shape), shift.to(dtype).view(shape)
    return torch.addcmul(shift, input.to(dtype), factor).to(input.dtype)


def _statistics(input: Tensor, group: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance of each channel, (C,) in float64, and the number of values."""
    values = input.to(torch.promote_types(input.dtype, torch.float32))
    dims = [0, *range(2, input.ndim)]
    var, mean = (figure.double() for figure in torch.var_mean(values, dims, correction=0))
    count = input.numel() // input.shape[1]
    sums = count * torch.cat([mean, var + mean.square(), mean.new_ones(1)])
    total = _Sum.apply(sums, group)
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
    """The sum over all processes of a group, and its gradient."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Any) -> Tensor:
        ctx.group = group
        total = tensor.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return _Sum.apply(gradient, ctx.group), None
