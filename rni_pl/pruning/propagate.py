"""Propagation of channel ids: a run that hands them out and notes what is tied, read or fixed."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from rni_pl.pruning.channels import Channels, LayerChannels
from rni_pl.pruning.ids import (
    Axis,
    Label,
    Memory,
    Unclear,
    all_ids,
    gathered,
    vector_of,
    zeros,
)  # fmt: skip
from rni_pl.pruning.ops import Misfit, Op, layer_of
from rni_pl.pruning.run import Example, Parts, Run, line_of_network, tensors_in

UNFOLLOWED = (Unclear, RuntimeError, IndexError, ValueError, TypeError)


class Propagation(Run):
    """Labels every tensor of a run with its channels, by the rules of the operations.

    `images` is the number in the example; 0: what is multiplied is not counted.
    """

    def __init__(self, channels: Channels, meta: bool, images: int = 0) -> None:
        super().__init__(meta)
        self.channels, self.images = channels, images

    # The course of an operation.

    def begun(self, x: Tensor, number: int) -> None:
        """An input of the network has no channels that could go."""
        self.put(x, Label(source=f"input {number}"), f"input {number}")

    def begin(self, op: Op) -> None:
        """Note what an operation is given."""
        for x in op.tensors:
            label = self.label(x)
            op.inputs.append(label)
            op.sources.append(x if label is None else label.source)
            op.made_by.append(x if label is None else x.channels[2])  # type: ignore[attr-defined]
        op.same = op.info.same(op)
        named = (layer_of(x.name) for x in op.inputs if x is not None and x.name)
        op.layer, op.line = next(named, self.layer), line_of_network(3)
        if self.meta and op.name == "lift_fresh" and op.tensors[0].is_meta:
            raise Misfit("makes a constant whose value is not seen")

    def end(self, op: Op) -> None:
        """Give what an operation made its labels."""
        number, made = len(self.ops) - 1, self._made(op)
        op.outputs, op.shapes = made, [x.shape for x in op.results]
        for x, label in zip(op.results, made, strict=True):
            if op.info.writes:
                label.source = number
                self.write(op.args[0], label, number)
            elif all(x is not given for given in op.tensors):  # not handed on as it is
                label.source = number
                if op.info.views:
                    self._share(op.tensors[0], x, label)
                self.put(x, label, number)

    def _made(self, op: Op) -> list[Label]:
        """The labels of what an operation makes."""
        if not op.layer and not any(op.inputs):
            return [Label() for _ in op.results]
        try:
            if op.info.rule is None or not op.results:
                raise Unclear("is not understood" if op.results else "decides by values")
            made = op.info.rule(self, op)
        except UNFOLLOWED as error:
            why = str(error) if isinstance(error, Unclear) else f"cannot be followed ({error})"
            op.unclear = f"{op.place}, which {why}".splitlines()[0]
            self.channels.unfollowed.setdefault(op.layer, f"feeds {op.unclear}")
            self.pin(all_ids(op.inputs), f"feeds {op.unclear}")
            for x, label in zip(op.tensors, op.inputs, strict=True):
                self.fix(x, label)
            return [Label() for _ in op.results]
        return made if isinstance(made, list) else [made]

    def forward(self, parts: Parts, example: Example, training: bool = False) -> list[Tensor]:
        """Run a network; all that reaches its output is fixed."""
        outputs = super().forward(parts, example, training)
        self.pin(all_ids(map(self.label, outputs)), "feeds the network's output")
        return outputs

    def hooks(self, name: str, module: nn.Module) -> Any:
        """Of layers with sizes but no parameters, and of attention, which checks its widths."""
        if type(module) is nn.ConstantPad3d or (type(module) is nn.GroupNorm and not module.affine):
            yield module.register_forward_pre_hook(lambda *_: setattr(self, "layer", name))
            yield module.register_forward_hook(lambda *_: setattr(self, "layer", ""))
        elif isinstance(module, nn.MultiheadAttention):
            yield module.register_forward_pre_hook(
                lambda _, args, kwargs: self.pin_all(
                    tensors_in((args, kwargs)),
                    "feeds a MultiheadAttention, whose width is that of its heads",
                ),
                with_kwargs=True,
            )

    # Labels of tensors.

    def label(self, x: Tensor) -> Label | None:
        """The label of a tensor, None for one that the run has not made."""
        found = getattr(x, "channels", None)
        if found is None or (found[1] is not None and found[1] is not self.token):
            return None
        label: Label = found[0]
        memory = label.memory
        if memory is not None and memory.writes != label.writes and x.numel():
            label = label.like(*gathered(memory.part(x)))
            label.source, label.memory, label.writes = memory.source, memory, memory.writes
            self.put(x, label, found[2])
        return label

    def put(self, x: Tensor, label: Label, number: Any) -> None:
        """Give a tensor its label; `number` is that of the operation that made it."""
        x.channels = label, self.token, number  # type: ignore[attr-defined]

    def _share(self, base: Tensor, x: Tensor, label: Label) -> None:
        """Let a change in place of a tensor or a view of it be seen in both."""
        given = self.label(base)
        if given and base.untyped_storage()._cdata == x.untyped_storage()._cdata:
            if given.memory is None:
                whole = self.full(given, base.shape) if len(given.axes) < 2 else zeros(1)
                offset = int(base.storage_offset())
                given.memory = Memory(base.size(), base.stride(), offset, whole, given.source)
            label.memory, label.writes = given.memory, given.memory.writes

    def write(self, x: Tensor, label: Label, number: int) -> None:
        """Give a tensor that changes in place a new label, in all of its views."""
        before = self.label(x)
        memory = None if before is None else before.memory
        if memory is not None and x.numel():
            memory.part(x).copy_(self.full(label, x.shape))
            memory.writes += 1
            memory.source = label.source
            label.memory, label.writes = memory, memory.writes
        self.put(x, label, number)

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

    def rows(self, weight: Tensor, dim: int) -> Axis:
        """The channels that a weight makes, which no norm layer has scaled yet."""
        return Axis(self.along(weight, dim).ids, loud=not self.channels.by_rows)

    # What rules note.

    def new(self, count: int) -> Tensor:
        """Ids of channels that begin here."""
        return self.channels.union.new(count)

    def tie(self, one: Tensor, other: Tensor, added: bool = False) -> None:
        """Let channels go only together, entry by entry; those that meet fixed ones stay."""
        if one is other:
            return
        one, other = one.flatten(), other.flatten()
        lowest = int(torch.minimum(one, other).min()) if one.numel() else 0
        if lowest < 0:
            one, other = one.abs(), other.abs()
        apart = one != other
        if lowest <= 0:
            free = (one != 0) & (other != 0)
            if not bool((free | ~apart).all()):
                where = f"meets fixed channels in {self.op.place}"
                self.pin(torch.maximum(one, other)[apart & ~free], where)
            apart &= free
        if not bool(apart.all()):
            one, other = one[apart], other[apart]
        if not one.numel():
            return
        self.channels.union.union(one, other)
        if added:
            self.channels.coupled.append((one, self.op.place))

    def pin(self, ids: Tensor, why: str) -> None:
        """Keep these channels for good."""
        if ids.numel():
            self.channels.fixed.append((ids.abs().flatten(), why))

    def pin_all(self, tensors: list[Tensor], why: str) -> None:
        """Keep the channels of these tensors for good."""
        with _disable_current_modes():
            self.pin(all_ids(map(self.label, tensors)), why)

    def hold(self, ids: Tensor | None, why: str) -> None:
        """Keep channels for good that the operation at hand reads, which `why`."""
        if ids is not None:
            self.op.unclear = f"{self.op.place}, which {why}"
            self.pin(ids, f"feeds {self.op.unclear}")

    def bind(self, x: Tensor, dim: int, ids: Tensor) -> None:
        """Let a parameter have these channels along a dimension, which must be of that size."""
        label = self.label(x)
        if label is None or dim not in label.axes:
            self.tie(ids, self.along(x, dim).signed.expand(len(ids)))
            return
        axis = label.axes[dim]
        if label.silent_at is not None:
            self.channels.scaled.setdefault(layer_of(label.name))
        if axis.ids is None:
            axis.ids = ids
        else:
            self.tie(ids, axis.ids if len(axis.ids) == len(ids) else axis.ids.expand(len(ids)))

    def fix(self, x: Tensor, label: Label | None) -> None:
        """Let whatever of a parameter has met no channels yet stay as it is."""
        for dim, axis in label.axes.items() if label else ():
            if axis.ids is None:
                axis.ids = zeros(x.size(dim))

    def read(self, axis: Axis, label: Label | None = None) -> None:
        """Note that channels are summed with others, so that they have to be 0 by then."""
        if axis.ids is None:
            return
        if axis.loud is not False:
            why = f"reaches {self.op.place} not only through the scale of a norm layer"
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
        if self.images and label is not None and label.name:
            each = multiplications // (weight.numel() * self.images)
            costs[label.name] = costs.get(label.name, 0) + each
            for x in beside:
                for axis in (self.label(x) or Label()).axes.values():
                    self.channels.beside.setdefault(label.name, []).append(axis)

    def note_layer(self, inputs: Tensor | None, outputs: Tensor) -> None:
        """Note what a layer reads and makes, at its first call."""
        name = self.op.layer
        if name and name not in self.channels.layers:
            self.channels.layers[name] = LayerChannels(inputs, outputs)
