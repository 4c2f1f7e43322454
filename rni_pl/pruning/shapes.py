"""Results on tensors without content, where torch's own way to them takes long.

Each is given an operation and returns an empty tensor of the result's shape; it raises
`RuntimeError` where the operation could not be carried out.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rni_pl.pruning.ops import SHAPES, Op

CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")
TRANSPOSED = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")


def dims_of(op: Op, x: Tensor) -> tuple[list[int], bool]:
    """The dimensions that an operation reduces, and whether they stay with size 1."""
    dim = op.get("dim")
    if dim is None or dim == []:
        return list(range(x.ndim)), False
    dims = [dim] if isinstance(dim, int) else list(dim)
    return [d % x.ndim for d in dims], bool(op.get("keepdim"))


def positions_of(op: Op) -> int:
    """How many of the last dimensions are positions."""
    digits = [c for c, after in zip(op.name, op.name[1:], strict=False) if after == "d"]
    return next((int(c) for c in digits if c.isdigit()), op.args[0].ndim - 2)


def carried_out(op: Op, instead: Callable[[Tensor], Tensor]) -> Any:
    """The result on other tensors, on the CPU."""

    def mapped(value: Any) -> Any:
        if isinstance(value, Tensor):
            return instead(value)
        if isinstance(value, list | tuple) and any(isinstance(v, Tensor) for v in value):
            return [mapped(v) for v in value]
        return torch.device("cpu") if isinstance(value, torch.device) else value

    return op.info.func(*map(mapped, op.args), **{key: mapped(v) for key, v in op.kwargs.items()})


_DTYPES: dict[Any, torch.dtype] = {}


def _elementwise_shape(op: Op) -> Tensor:
    """An empty result of an operation on tensors without content, broadcast."""
    shape = op.tensors[0].shape
    if any(x.shape != shape for x in op.tensors[1:]):
        shape = _broadcast([x.shape for x in op.tensors])
    if op.info.func._schema.is_mutable:
        if shape != op.args[0].shape:
            raise RuntimeError(f"{list(op.args[0].shape)} cannot hold {list(shape)}")
        return op.args[0]
    key = (id(op.info.func), tuple((x.dtype, x.ndim > 0) for x in op.tensors), repr(op.settings))
    if key not in _DTYPES:
        made = carried_out(op, lambda x: torch.ones((1,) * x.ndim, dtype=x.dtype, device="cpu"))
        _DTYPES[key] = made.dtype
    return torch.empty(shape, dtype=_DTYPES[key], device="meta")


def _broadcast(shapes: list[torch.Size]) -> torch.Size:
    made = [1] * max(map(len, shapes))
    for shape in shapes:
        for d in range(-len(shape), 0):
            if shape[d] != 1 and made[d] not in (1, shape[d]):
                raise RuntimeError(f"sizes {list(map(list, shapes))} do not go together")
            made[d] = made[d] if shape[d] == 1 else shape[d]
    return torch.Size(made)


SHAPES["elementwise"] = _elementwise_shape


def _mean_shape(op: Op) -> Tensor:
    x, (dims, keepdim) = op.args[0], dims_of(op, op.args[0])
    shape = [1 if d in dims else size for d, size in enumerate(x.shape) if keepdim or d not in dims]
    return _empty(x, shape)


def _adaptive_shape(op: Op) -> Tensor:
    x, size, rank = op.args[0], op.args[1], positions_of(op)
    sizes = [size] * rank if isinstance(size, int) else list(size) * (rank // len(size))
    return _empty(x, [*x.shape[:-rank], *sizes])


SHAPES["mean"] = _mean_shape
SHAPES.update({f"adaptive_avg_pool{n}d": _adaptive_shape for n in (1, 2, 3)})


def _conv_shape(op: Op) -> Tensor:
    x, weight, n = op.args[0], op.args[1], op.args[1].ndim - 2
    if x.ndim not in (n + 1, n + 2) or x.size(-n - 1) != weight.size(1) * op.get("groups"):
        raise RuntimeError(f"weight of size {list(weight.shape)} does not fit {list(x.shape)}")
    padding, sizes = op.get("padding"), list(x.shape[-n:])
    if padding != "same":
        pads = [0] * n if padding == "valid" else _each(padding, n)
        strides, dilations = _each(op.get("stride"), n), _each(op.get("dilation"), n)
        for d, (pad, stride, dilation) in enumerate(zip(pads, strides, dilations, strict=True)):
            reach = dilation * (weight.size(d + 2) - 1)
            sizes[d] = (sizes[d] + 2 * pad - reach - 1) // stride + 1
    if min(sizes) <= 0:
        raise RuntimeError(f"the kernel is larger than what it is given, {list(x.shape)}")
    return _empty(x, [*x.shape[: x.ndim - n - 1], weight.size(0), *sizes])


def _empty(x: Tensor, shape: Sequence[int]) -> Tensor:
    return torch.empty(shape, dtype=x.dtype, device="meta")


def _each(value: Any, n: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * n if len(values) == 1 else values


def _linear_shape(op: Op) -> Tensor:
    x, weight = op.args[0], op.args[1]
    if weight.ndim != 2 or x.size(-1) != weight.size(1):
        raise RuntimeError(f"weight of size {list(weight.shape)} does not fit {list(x.shape)}")
    return _empty(x, [*x.shape[:-1], weight.size(0)])


def _like_input(op: Op) -> Tensor:
    x = op.args[0]
    if any(parameter.numel() != x.size(1) for parameter in op.tensors[1:]):
        raise RuntimeError(f"{op.name} of {op.tensors[1].numel()} is given {list(x.shape)}")
    if op.name == "group_norm" and x.size(1) % op.args[1]:
        raise RuntimeError(f"{x.size(1)} channels in {op.args[1]} groups")
    return _empty(x, x.shape)


def _attention_shape(op: Op) -> Tensor:
    query, value = op.args[0], op.args[2]
    return _empty(query, [*query.shape[:-1], value.size(-1)])


def _layer_norm_shape(op: Op) -> Tensor:
    x, shape = op.args[0], list(op.args[1])
    if list(x.shape[x.ndim - len(shape) :]) != shape:
        raise RuntimeError(f"layer_norm of {shape} is given {list(x.shape)}")
    return _empty(x, x.shape)


SHAPES.update(dict.fromkeys(CONVOLUTIONS, _conv_shape))
SHAPES.update(dict.fromkeys(("batch_norm", "instance_norm", "group_norm"), _like_input))
SHAPES.update({"linear": _linear_shape, "layer_norm": _layer_norm_shape})
SHAPES.update({"scaled_dot_product_attention": _attention_shape})
