"""The shape of a result, on torch's meta device, where tensors have no content."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from rni_pl.pruning import kinds
from rni_pl.pruning.numbering import map_tensors


def to_meta(values: Any) -> Any:
    """Nested values with meta tensors in place of tensors."""
    return map_tensors(values, lambda tensor: tensor.detach().to("meta"))


def by_definition(name: str, args: tuple, kwargs: dict) -> Tensor | None:
    """What a common function makes of meta tensors, sooner than torch tells; None: ask torch."""
    if not args or not _is_float(args[0]):
        return None
    if name in kinds.ACTIVATIONS:
        return args[0]
    if name in kinds.REDUCTIONS:
        return _reduced(*args, **kwargs)
    if len(args) != 2 or kwargs or name not in kinds.ARITHMETIC:
        return None
    a, b = args
    if isinstance(b, int | float) or (_is_float(b) and a.shape == b.shape):
        return a
    return a.new_empty(torch.broadcast_shapes(a.shape, b.shape)) if _is_float(b) else None


def _reduced(x: Tensor, dim: Any = None, keepdim: bool = False, **others: Any) -> Tensor | None:
    """A mean or sum over given dimensions."""
    dims = (dim,) if isinstance(dim, int) else dim
    if others or not dims or not all(-x.ndim <= d < x.ndim for d in dims):
        return None
    gone = {d % x.ndim for d in dims}
    kept = [(d, 1 if d in gone else size) for d, size in enumerate(x.shape)]
    return x.new_empty([size for d, size in kept if keepdim or d not in gone])


def on_meta(layer: nn.Module, args: tuple, kwargs: dict) -> Any:
    """What a layer makes of meta tensors; common layers by their definition, which is faster."""
    if len(args) == 1 and not kwargs:
        x = args[0]
        if isinstance(layer, kinds.ELEMENTWISE_LAYERS) or _is_norm(layer, x):
            return x
        if type(layer) is nn.Conv2d and (size := _size_after(layer, x.shape)):
            return x.new_empty(len(x), layer.out_channels, *size)
        if type(layer) is nn.Linear and x.shape[-1] == layer.in_features:
            return x.new_empty(*x.shape[:-1], layer.out_features)
    tensors = dict(layer.named_parameters()) | dict(layer.named_buffers())
    if not tensors:
        return layer(*args, **kwargs)
    on_meta = {name: to_meta(tensor) for name, tensor in tensors.items()}
    return functional_call(layer, on_meta, args, dict(kwargs))


def _is_norm(layer: nn.Module, x: Tensor) -> bool:
    """Whether it is a norm layer for these channels."""
    known = isinstance(layer, kinds.BATCH_NORMS) and kinds.is_known(layer)
    return known and x.ndim > 1 and x.size(1) == layer.num_features


def _size_after(conv: nn.Conv2d, shape: torch.Size) -> list[int] | None:
    """Height and width of a convolution's result; None where its input does not fit."""
    if len(shape) != 4 or shape[1] != conv.in_channels or isinstance(conv.padding, str):
        return None
    settings = zip(
        shape[2:], conv.padding, conv.dilation, conv.kernel_size, conv.stride, strict=True
    )
    return [(s + 2 * p - d * (k - 1) - 1) // stride + 1 for s, p, d, k, stride in settings]


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
