"""Tensors that hold channel numbers in place of activations."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx


class Unknown(Exception):
    """An operation whose effect on channels is not known."""


def channels(x: Tensor, dim: int) -> Tensor:
    """The channel numbers along `dim`, where they are the same along every other dimension."""
    dim %= x.ndim
    for d in range(x.ndim):
        if d != dim:
            x = first(x, d)
    return x.flatten()


def place(vector: Tensor, shape: Sequence[int], dim: int) -> Tensor:
    """A vector of channel numbers along dimension `dim` of the given shape."""
    shape = list(shape)
    shape[dim] = len(vector)
    view = [1] * len(shape)
    view[dim] = len(vector)
    return vector.view(view).expand(shape)


def fixed(shapes: Any) -> Any:
    """Channel numbers 0 in the given shape or shapes."""
    if isinstance(shapes, torch.Size):
        return torch.zeros((), dtype=torch.long).expand(shapes)
    if isinstance(shapes, tuple) and hasattr(shapes, "_fields"):
        return type(shapes)(*map(fixed, shapes))
    if isinstance(shapes, list | tuple):
        return type(shapes)(fixed(shape) for shape in shapes)
    if isinstance(shapes, dict):
        return {key: fixed(shape) for key, shape in shapes.items()}
    return shapes


def constant_along(x: Tensor, dim: int) -> bool:
    """Whether the channel stays the same along `dim`."""
    if x.size(dim) <= 1 or x.stride(dim) == 0:
        return True
    return bool((x == x.narrow(dim, 0, 1)).all())


def collapse(x: Tensor) -> Tensor:
    """`x` with every dimension along which it is constant cut to length 1."""
    for d in range(x.ndim):
        if x.size(d) > 1 and constant_along(x, d):
            x = x.narrow(d, 0, 1)
    return x


def collapse_both(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two tensors of one shape, cut where both are constant."""
    for d in range(a.ndim):
        if a.size(d) > 1 and constant_along(a, d) and constant_along(b, d):
            a, b = a.narrow(d, 0, 1), b.narrow(d, 0, 1)
    return a, b


def first(x: Tensor, dim: int) -> Tensor:
    """`x` cut to length 1 along a dimension where it is constant; `Unknown` where it is not."""
    if not constant_along(x, dim):
        raise Unknown("mixes channels with positions")
    return x.narrow(dim, 0, 1)


def holds_tensors(values: Any) -> bool:
    """Whether there is a tensor in nested values."""
    found: list[Tensor] = []
    fx.node.map_aggregate(values, lambda x: found.append(x) if isinstance(x, Tensor) else None)
    return bool(found)


def unfolds(before: Tensor, after: Tensor) -> bool:
    """Whether a view splits the channel dimension in two, as a channel shuffle does."""
    return (
        after.ndim == before.ndim + 1
        and after.size(1) * after.size(2) == before.size(1)
        and after.shape[3:] == before.shape[2:]
    )
