"""Tensors that hold channel numbers in place of activations.

They have the shape of the activations, but nearly all of their dimensions are expanded (stride 0):
what is done to them is done to the few numbers that differ.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, fx

Key = TypeVar("Key")


class Unknown(Exception):
    """An operation whose effect on channels is not known."""


@dataclass
class LayerChannels:
    """The channels that a layer reads and makes, as numbers.

    `inputs` has one entry per input channel (or input feature of a linear layer), `outputs` one
    per output channel. Layers that keep their channels (BatchNorm, PReLU) have `outputs` alone.
    """

    inputs: Tensor | None
    outputs: Tensor


def map_layers(
    layers: Mapping[Key, LayerChannels],
    function: Callable[[Tensor, list[int]], Sequence[Tensor]],
) -> dict[Key, LayerChannels]:
    """Apply `function` to the numbers of many layers at once, which is faster than one by one.

    It is given all numbers in a row and their lengths, and returns a tensor for each length.
    """
    numbers = [n for c in layers.values() for n in (c.inputs, c.outputs) if n is not None]
    if not numbers:
        return {}
    mapped = iter(function(torch.cat(numbers), [len(n) for n in numbers]))
    return {
        key: LayerChannels(None if c.inputs is None else next(mapped), next(mapped))
        for key, c in layers.items()
    }


class Ties:
    """Which of the numbers 0 .. `size` - 1 belong together; number 0 is never tied."""

    def __init__(self) -> None:
        self.size = 1
        self.pairs: list[Tensor] = []

    def new(self, count: int) -> Tensor:
        """`count` fresh numbers."""
        self.size += count
        return torch.arange(self.size - count, self.size)

    def tie(self, pairs: Tensor) -> None:
        """Let the two numbers of each column, shape (2, K), belong together."""
        self.pairs.append(pairs)

    def roots(self) -> Tensor:
        """The smallest number that each number is tied to, shape (size,)."""
        root = torch.arange(self.size)
        pairs = torch.cat([torch.zeros(2, 1, dtype=torch.long), *self.pairs], 1)
        while True:
            low, high = root[pairs].sort(0).values
            apart = low != high
            if not bool(apart.any()):
                return root
            root.scatter_reduce_(0, high[apart], low[apart], "amin")
            while not torch.equal(root, root[root]):
                root = root[root]


def channels(x: Tensor, dim: int) -> Tensor:
    """The channel numbers along `dim`, where they are the same along every other dimension."""
    dim %= x.ndim
    placed = getattr(x, "placed", None)
    if placed is not None and placed[1] == dim:
        return placed[0]
    if all(constant_along(x, d) for d in range(x.ndim) if d != dim):
        return x[tuple(slice(None) if d == dim else 0 for d in range(x.ndim))]
    raise Unknown("mixes channels with positions")


def place(vector: Tensor, shape: Sequence[int], dim: int) -> Tensor:
    """A vector of channel numbers along dimension `dim` of the given shape."""
    shape = list(shape)
    shape[dim] = len(vector)
    view = [1] * len(shape)
    view[dim] = len(vector)
    x = vector.view(view).expand(shape)
    x.placed = vector, dim % len(shape)  # type: ignore[attr-defined]  # `channels` need not look
    return x


def placed_alike(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor] | None:
    """The two vectors of as many channels that `place` put along the same dimension."""
    one, other = getattr(a, "placed", None), getattr(b, "placed", None)
    if one is None or other is None or a.ndim != b.ndim or one[1] != other[1]:
        return None
    return (one[0], other[0]) if len(one[0]) == len(other[0]) else None


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


def collapse(*tensors: Tensor, but: int | None = None) -> tuple[Tensor, ...]:
    """Tensors with as many dimensions, cut to length 1 where all of them are constant.

    Dimension `but` is left as it is.
    """
    for d in range(tensors[0].ndim):
        if d != but and all(constant_along(x, d) for x in tensors):
            tensors = tuple(x.narrow(d, 0, 1) if x.size(d) > 1 else x for x in tensors)
    return tensors


def first(x: Tensor, dim: int) -> Tensor:
    """`x` cut to length 1 along a dimension where it is constant; `Unknown` where it is not."""
    if not constant_along(x, dim):
        raise Unknown("mixes channels with positions")
    return x.narrow(dim, 0, 1)


def off_zero(x: Tensor) -> Tensor:
    """Channels that are not 0 where their scale is: what reads them sees more than the scale."""
    return -collapse(x)[0].abs().expand_as(x)


def join(tensors: Sequence[Tensor], dim: int = 0, *, axis: int | None = None) -> Tensor:
    """A concatenation."""
    dim = (dim if axis is None else axis) % tensors[0].ndim
    shape = list(tensors[0].shape)
    shape[dim] = -1
    return torch.cat(collapse(*tensors, but=dim), dim).expand(shape)


def map_tensors(value: Any, function: Callable[[Tensor], Any]) -> Any:
    """Apply `function` to every tensor of nested tuples, lists and dicts."""
    return fx.node.map_aggregate(value, lambda x: function(x) if isinstance(x, Tensor) else x)


def tensors_in(values: Any) -> list[Tensor]:
    """Every tensor of nested tuples, lists and dicts."""
    if isinstance(values, Tensor):
        return [values]
    found: list[Tensor] = []
    map_tensors(values, found.append)
    return found


def same_channels(before: Any, now: Any) -> bool:
    """Whether nested values hold the same channels (signs left out), and the same settings."""
    one, other = _leaves(before), _leaves(now)
    return len(one) == len(other) and all(map(_same, one, other))


def _leaves(values: Any) -> list[Any]:
    found: list[Any] = []
    fx.node.map_aggregate(values, found.append)
    return found


def _same(a: Any, b: Any) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return type(a) is type(b) and bool(a == b)
    if a.shape != b.shape:
        return False
    a, b = collapse(a, b)
    return torch.equal(a.abs(), b.abs())


def numbers_in(values: Any) -> Tensor:
    """All distinct channel numbers in nested values, signs left out."""
    found = [collapse(x)[0].flatten() for x in tensors_in(values)]
    return torch.cat([torch.zeros(0, dtype=torch.long), *found]).abs().unique()
