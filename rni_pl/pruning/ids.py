"""Ids of channels on tensors of any shape, and which of them can only go together.

While a network is watched, each of its tensors has a `Label`, which says to which channels its
elements belong. An id is positive where the channel is 0 once the scale of its norm layer is 0,
negative where it is not (before the norm layer, for one), and 0 for what has to stay.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

NO_IDS = torch.zeros(0, dtype=torch.long, device="cpu")
ZERO = torch.zeros((), dtype=torch.long, device="cpu")


class Unclear(Exception):
    """What happens to the channels in an operation cannot be said; they have to stay."""


@dataclass(slots=True, eq=False)
class Axis:
    """Ids along one dimension: int64, shape (size,), on the CPU, all >= 0.

    Attributes:
        ids: None: a dimension of a parameter which has met no channels yet; it will take theirs.
        loud: which channels are not 0 where their scale is: all, none, or bool, shape (size,).
    """

    ids: Tensor | None = None
    loud: Tensor | bool = False

    @classmethod
    def of(cls, signed: Tensor) -> "Axis":
        """From ids that are negative where a channel is loud."""
        loud = signed < 0
        return cls(signed.abs(), loud) if bool(loud.any()) else cls(signed)

    @property
    def signed(self) -> Tensor:
        """Ids that are negative where a channel is loud."""
        assert self.ids is not None
        if isinstance(self.loud, Tensor):
            return torch.where(self.loud, -self.ids, self.ids)
        return -self.ids if self.loud else self.ids


@dataclass(slots=True, eq=False)
class Label:
    """The channels that the elements of one tensor belong to.

    Attributes:
        axes: dimension -> ids along it. A weight has two, an activation usually one.
        full: where ids vary along several dimensions at once: ids in the tensor's shape.
        name: of the parameter that the tensor is or was made of; empty for activations.
        silent_at: it is made of a scale that ranks channels, whose removed ones have this value.
        constant: removed channels may be a constant here (of a sigmoid, for one), not 0.
        source: the number of the operation that made the tensor, or a parameter's name.
        memory: what it shares with its views.
        writes: how many changes in place the label knows of.
    """

    axes: dict[int, Axis] = field(default_factory=dict)
    full: Tensor | None = None
    name: str = ""
    silent_at: float | None = None
    constant: bool = False
    source: Any = -1
    memory: "Memory | None" = None
    writes: int = 0

    def __bool__(self) -> bool:
        """Whether it has any ids."""
        return bool(self.axes) or self.full is not None

    def like(self, axes: dict[int, Axis], full: Tensor | None = None) -> "Label":
        """The label of what is made of this tensor, with other ids."""
        return Label(axes, full, self.name, self.silent_at, self.constant)

    def same(self) -> "Label":
        """The label of what has the same shape and channels."""
        return self.like(self.axes, self.full)

    def loud(self) -> "Label":
        """The label of what has the same channels, which are not 0 where their scale is."""
        axes = {d: Axis(axis.ids, loud=True) for d, axis in self.axes.items()}
        return self.like(axes, None if self.full is None else -self.full.abs())

    def ids(self) -> Tensor:
        """All ids in it, signs left out."""
        found = [axis.ids for axis in self.axes.values() if axis.ids is not None]
        if self.full is not None:
            found.append(collapse(self.full)[0].flatten().abs())
        return torch.cat(found) if found else NO_IDS


@dataclass(slots=True, eq=False)
class Memory:
    """What a tensor and its views share: the ids of the whole, once one of them is changed.

    `ids` lies in memory as the tensor does, so that a view of the tensor finds its ids at the same
    places; `writes` counts the changes in place.
    """

    size: Sequence[int]
    stride: Sequence[int]
    offset: int
    whole: Tensor
    source: Any
    ids: Tensor | None = None
    writes: int = 0

    def part(self, x: Tensor) -> Tensor:
        """The ids of a view."""
        if self.ids is None:
            self.ids = torch.empty_strided(self.size, self.stride, dtype=torch.long, device="cpu")
            self.ids.copy_(self.whole)
        return self.ids.as_strided(x.size(), x.stride(), x.storage_offset() - self.offset)


def zeros(size: int) -> Tensor:
    """Ids of channels that have to stay."""
    return ZERO.expand(size)


def gathered(ids: Tensor) -> tuple[dict[int, Axis], Tensor | None]:
    """The axes or the full ids of a label, from ids in a tensor's shape."""
    varying = [d for d in range(ids.ndim) if ids.size(d) > 1 and ids.stride(d)]
    if len(varying) > 1:
        varying = [d for d in varying if not constant_along(ids, d)]
    if not ids.numel() or (not varying and int(ids[(0,) * ids.ndim]) == 0):
        return {}, None
    if len(varying) > 1 or not varying:
        return {}, ids
    return {varying[0]: Axis.of(vector_of(ids, varying[0]))}, None


def vector_of(ids: Tensor, dim: int) -> Tensor:
    """Ids along `dim`, of ids which do not vary along any other dimension."""
    return ids[tuple(slice(None) if d == dim else 0 for d in range(ids.ndim))]


def constant_along(ids: Tensor, dim: int) -> bool:
    """Whether ids stay the same along a dimension."""
    if ids.size(dim) <= 1 or ids.stride(dim) == 0:
        return True
    return bool((ids == ids.narrow(dim, 0, 1)).all())


def collapse(*tensors: Tensor, but: int | None = None) -> tuple[Tensor, ...]:
    """Ids with as many dimensions, cut to length 1 along those where all of them are constant.

    Dimension `but` is left as it is.
    """
    for d in range(tensors[0].ndim):
        if d != but and all(constant_along(x, d) for x in tensors):
            tensors = tuple(x.narrow(d, 0, 1) if x.size(d) > 1 else x for x in tensors)
    return tensors


def all_ids(labels: Iterable[Label | None]) -> Tensor:
    """All distinct ids in several labels, signs left out."""
    found = [label.ids() for label in labels if label]
    return torch.cat(found).unique() if found else NO_IDS


class UnionFind:
    """Which of the ids 0 .. `size` - 1 belong together; id 0 belongs to none."""

    def __init__(self) -> None:
        self.size = 1
        self.pairs: list[Tensor] = []

    def new(self, count: int) -> Tensor:
        """`count` fresh ids."""
        self.size += count
        return torch.arange(self.size - count, self.size, device="cpu")

    def union(self, one: Tensor, other: Tensor) -> None:
        """Let ids of two vectors, all positive, belong together, entry by entry."""
        self.pairs.append(torch.stack([one, other]))

    def roots(self) -> Tensor:
        """The smallest id that each id belongs together with, shape (size,)."""
        root = torch.arange(self.size, device="cpu")
        pairs = torch.cat([torch.zeros(2, 0, dtype=torch.long, device="cpu"), *self.pairs], 1)
        while True:
            low, high = root[pairs].sort(0).values
            apart = low != high
            if not bool(apart.any()):
                return root
            root.scatter_reduce_(0, high[apart], low[apart], "amin")
            while not torch.equal(root, root[root]):
                root = root[root]
