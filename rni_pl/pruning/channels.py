"""What is known of a network's channels, and what the rules of operations note of a run."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rni_pl.pruning.ids import Axis, Label, Memory, Unclear, UnionFind, gathered, vector_of, zeros
from rni_pl.pruning.ops import Misfit, Record, layer_of


@dataclass
class LayerChannels:
    """Ids of the channels that a layer reads (None: it keeps what it is given) and makes."""

    inputs: Tensor | None
    outputs: Tensor


@dataclass
class Channels:
    """All that is known of a network's channels, of however many runs.

    Attributes:
        union: which ids can only go together.
        parameters: name of a parameter or buffer -> the ids along its dimensions.
        layers: layers with weights for channels, by name.
        scaled: norm layers whose scales rank channels, in forward order.
        fixed: ids that have to stay, and why.
        coupled: ids that additions tie, and where.
        constants: ids that readers see as a constant which the removal takes away.
        columns: names and dimensions of parameters along which channels are read.
        costs: parameter -> how often each element is multiplied, for one image.
        beside: parameter -> channels for each of which it is multiplied, if not its own.
        unfollowed: layer -> what of it could not be followed.
    """

    union: UnionFind = field(default_factory=UnionFind)
    parameters: dict[str, Label] = field(default_factory=dict)
    layers: dict[str, LayerChannels] = field(default_factory=dict)
    scaled: dict[str, None] = field(default_factory=dict)
    fixed: list[tuple[Tensor, str]] = field(default_factory=list)
    coupled: list[tuple[Tensor, str]] = field(default_factory=list)
    constants: list[Tensor] = field(default_factory=list)
    columns: set[tuple[str, int]] = field(default_factory=set)
    costs: dict[str, int] = field(default_factory=dict)
    beside: dict[str, list[Axis]] = field(default_factory=dict)
    unfollowed: dict[str, str] = field(default_factory=dict)


@dataclass
class Comparison:
    """The run that another one has to equal.

    Attributes:
        records: its operations.
        kept: which ids are left now, bool, shape (ids,).
        groups: which ids are tied, 0 for those that have to stay, shape (ids,).
    """

    records: list[Record]
    kept: Tensor
    groups: Tensor
    known: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def left(self, ids: Tensor) -> Tensor:
        """What is kept of some ids; the same tensor each time that it is asked for."""
        found = self.known.get(id(ids))
        if found is None:
            found = self.known[id(ids)] = ids, ids[self.kept[ids]]
        return found[1]

    def alike(self, one: Tensor, other: Tensor) -> bool:
        """Whether two vectors of ids are of channels that go only together."""
        if one is other:
            return True
        return torch.equal(self.groups[one].expand(len(other)), self.groups[other])


class Labels:
    """The labels of a run's tensors, and the notes that rules take.

    `before` is the run that this one has to equal, if there is one; then nothing is noted. `images`
    is the number in the example; 0: what is multiplied is not counted.
    """

    def __init__(
        self, channels: Channels, images: int = 0, before: Comparison | None = None
    ) -> None:
        super().__init__()
        self.channels, self.images, self.before = channels, images, before
        self.records: list[Record] = []
        self.run = object()  # tells the tensors of this run from those of others
        self.layer = ""  # one without parameters that is at work, whose sizes can change

    def label(self, x: Tensor) -> Label | None:
        """The label of a tensor, None for one that the run has not made."""
        found: tuple[Label, Any] | None = getattr(x, "channels", None)
        if found is None or (found[1] is not self.run and found[1] is not None):
            return None
        label, memory = found[0], found[0].memory
        if memory is not None and memory.writes != label.writes and x.numel():
            label = label.like(*gathered(memory.part(x)))
            label.source, label.memory, label.writes = memory.source, memory, memory.writes
            self.put(x, label)
        return label

    def put(self, x: Tensor, label: Label) -> None:
        """Give a tensor its label."""
        x.channels = label, self.run  # type: ignore[attr-defined]

    def put_view(self, base: Tensor, x: Tensor, label: Label) -> None:
        """Give a view its label; a change in place of one of the two is seen in both."""
        given = self.label(base)
        if given and base.untyped_storage()._cdata == x.untyped_storage()._cdata:
            if given.memory is None:
                whole = self.full(given, base.shape) if len(given.axes) < 2 else zeros(1)
                offset = int(base.storage_offset())
                given.memory = Memory(base.size(), base.stride(), offset, whole, given.source)
            label.memory, label.writes = given.memory, given.memory.writes
        self.put(x, label)

    def write(self, x: Tensor, label: Label) -> None:
        """Give a tensor that changes in place a new label, in all of its views."""
        before = self.label(x)
        memory = None if before is None else before.memory
        if memory is not None and x.numel():
            memory.part(x).copy_(self.full(label, x.shape))
            memory.writes += 1
            memory.source = label.source
            label.memory, label.writes = memory, memory.writes
        self.put(x, label)

    def full(self, label: Label, shape: Sequence[int], dim: int | None = None) -> Tensor:
        """Ids in the shape of a tensor: all, or those along one of its axes."""
        if label.full is not None:
            return label.full.expand(shape)
        if dim is None and len(label.axes) > 1:
            raise Unclear("has channels along several dimensions")
        dim = next(iter(label.axes), None) if dim is None else dim
        if dim is None:
            return zeros(1).expand(shape)
        view = [shape[d] if d == dim else 1 for d in range(len(shape))]
        return self.given(label.axes[dim], shape[dim]).signed.view(view).expand(shape)

    def given(self, axis: Axis, size: int) -> Axis:
        """An axis with ids; a parameter that has none yet is given new ones."""
        if axis.ids is None:
            axis.ids = self.new(size)
        return axis

    def along(self, x: Tensor, dim: int) -> Axis:
        """The ids along one dimension of a tensor."""
        label, dim = self.label(x), dim % x.ndim
        if label and dim in label.axes:
            return self.given(label.axes[dim], x.size(dim))
        if not label or label.full is None:
            return Axis(zeros(x.size(dim)))
        if any(label.full.stride(d) and x.size(d) > 1 for d in range(x.ndim) if d != dim):
            raise Unclear("mixes channels with positions")
        return Axis.of(vector_of(label.full, dim))

    def vector(self, x: Tensor, dim: int) -> Tensor:
        """The ids along one dimension of a tensor, negative where channels are loud."""
        return self.along(x, dim).signed

    def rows(self, weight: Tensor, dim: int) -> Axis:
        """The channels that a weight makes, which no norm layer has scaled yet."""
        return Axis(self.along(weight, dim).ids, loud=True)

    # What rules call.

    def way(self, way: Any) -> Any:
        """In which of several ways a rule goes; in a run that is compared, in which it went."""
        self.records[-1].way = way
        return way if self.before is None else self.before.records[len(self.records) - 1].way

    def new(self, count: int) -> Tensor:
        """Ids of channels that begin here."""
        record = self.records[-1]
        if self.before is None:
            ids = self.channels.union.new(count)
        else:
            then = self.before.records[len(self.records) - 1].made
            ids = self.before.left(then[len(record.made)])
            if len(ids) != count:
                raise Misfit("makes another number of channels")
        record.made.append(ids)
        return ids

    def tie(self, one: Tensor, other: Tensor, added: bool = False) -> None:
        """Let channels go only together, entry by entry; those that meet fixed ones stay."""
        if self.before is not None or one is other:
            return
        one, other = one.abs().flatten(), other.abs().flatten()
        apart = one != other
        if not bool(apart.any()):
            return
        free = apart & (one != 0) & (other != 0)
        if not bool(free.all()):
            where = f"meets fixed channels in {self.records[-1].place}"
            self.pin(torch.maximum(one, other)[apart & ~free], where)
            one, other = one[free], other[free]
        self.channels.union.union(one, other)
        if added:
            self.channels.coupled.append((one, self.records[-1].place))

    def pin(self, ids: Tensor, why: str) -> None:
        """Keep these channels for good."""
        if self.before is None and ids.numel():
            ids = ids.abs().unique()
            self.channels.fixed.append((ids[ids > 0], why))

    def hold(self, ids: Tensor | None, why: str) -> None:
        """Keep channels for good that the operation at hand reads, which `why`."""
        if ids is not None:
            self.records[-1].unclear = f"{self.records[-1].place}, which {why}"
            self.pin(ids, f"feeds {self.records[-1].unclear}")

    def bind(self, x: Tensor, dim: int, ids: Tensor) -> None:
        """Let a parameter have these channels along a dimension, which must be of that size."""
        label = self.label(x)
        if label is None or dim not in label.axes:
            self.tie(ids, self.vector(x, dim).expand(len(ids)))
            return
        axis = label.axes[dim]
        if label.silent_at is not None and self.before is None:
            self.channels.scaled.setdefault(layer_of(label.name))
        if axis.ids is None:
            axis.ids = ids
        elif self.before is None:
            self.tie(ids, axis.ids if len(axis.ids) == len(ids) else axis.ids.expand(len(ids)))
        elif not self.before.alike(axis.ids, ids):
            raise Misfit("would meet other channels than before")

    def fix(self, x: Tensor, label: Label | None) -> None:
        """Let whatever of a parameter has met no channels yet stay as it is."""
        for dim, axis in label.axes.items() if label else ():
            if axis.ids is None:
                axis.ids = zeros(x.size(dim))

    def read(self, axis: Axis, label: Label | None = None) -> None:
        """Note that channels are summed with others, so that they have to be 0 by then."""
        if self.before is not None or axis.ids is None:
            return
        if axis.loud is not False:
            why = f"reaches {self.records[-1].place} not only through the scale of a norm layer"
            self.pin(axis.ids if axis.loud is True else axis.ids[axis.loud], why)
        if label is not None and label.constant:
            self.channels.constants.append(axis.ids)

    def contract(self, axis: Axis, label: Label | None, weight: Tensor, dim: int) -> None:
        """Sum over channels, each times its weights along dimension `dim` of `weight`."""
        self.read(axis, label)
        self.bind(weight, dim, axis.ids)  # type: ignore[arg-type]
        if (of := self.label(weight)) is not None:
            self.channels.columns.add((of.name, dim))

    def count(self, weight: Tensor, multiplications: int, *beside: Tensor) -> None:
        """Note how often each element of a parameter is multiplied, for one image.

        It is multiplied anew for each of the channels of other tensors, `beside` it.
        """
        label, costs = self.label(weight), self.channels.costs
        if self.images and self.before is None and label is not None and label.name:
            each = multiplications // (weight.numel() * self.images)
            costs[label.name] = costs.get(label.name, 0) + each
            for x in beside:
                for axis in (self.label(x) or Label()).axes.values():
                    self.channels.beside.setdefault(label.name, []).append(axis)

    def note_layer(self, inputs: Tensor | None, outputs: Tensor) -> None:
        """Note what a layer reads and makes, at its first call."""
        name = self.records[-1].layer
        if name and self.before is None and name not in self.channels.layers:
            self.channels.layers[name] = LayerChannels(inputs, outputs)
