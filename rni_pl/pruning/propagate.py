"""Runs a network's own forward pass and propagates the ids of channels through every operation.

The first run hands out the ids and notes which of them are tied, read or fixed. A later run of the
pruned network, whose parameters carry the ids that they keep, finds whatever does not fit: each
operation must be the same as before and give the same ids, less those that went.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from types import CodeType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rni_pl.pruning import layers, moves  # noqa: F401  # they register their rules
from rni_pl.pruning.channels import Channels, Comparison, Labels
from rni_pl.pruning.ids import Label, Unclear, all_ids, collapse, vector_of
from rni_pl.pruning.ops import Misfit, Op, OpInfo, Record, info_of, layer_of

# What lies between an operation and the network's own code: torch's, and this package's.
_PACKAGE = Path(__file__).parent.parent
_NOT_THE_NETWORKS = (
    str(Path(torch.__file__).parent) + "/", str(_PACKAGE / "pruning"), str(_PACKAGE / "norm"),
)  # fmt: skip
UNFOLLOWED = (Unclear, RuntimeError, IndexError, ValueError, TypeError)


class Propagation(Labels, TorchDispatchMode):
    """One run of a network, on tensors without content where `meta`; see `Labels`."""

    def __init__(
        self, channels: Channels, meta: bool, images: int = 0, before: Comparison | None = None
    ) -> None:
        super().__init__(channels, images, before)
        self.meta = meta
        self.busy = False  # with an operation, not with the network's code between them

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Carry out one operation, and note what becomes of the channels."""
        kwargs = kwargs or {}
        info = info_of(func)
        if info.decomposes:
            with self:
                return func.decompose(*args, **kwargs)
        if info.writes and args[0].ndim == 0 and self.label(args[0]) is None:
            return func(*args, **kwargs)  # a counter of batches, which goes on in training only
        self.busy = True
        op = Op(info, args, kwargs)
        record = self.begin(info, op)
        op.out = info.shape(op) if self.meta and info.shape else func(*args, **kwargs)
        self.end(info, op, record)
        self.busy = False
        return op.out

    def begin(self, info: OpInfo, op: Op) -> Record:
        """Note an operation before it is carried out."""
        labels = [self.label(x) for x in op.tensors]
        sources: list[Any] = [
            x if label is None else label.source
            for x, label in zip(op.tensors, labels, strict=True)
        ]
        named = (layer_of(x.name) for x in labels if x is not None and x.name)
        line = _line_of_network() if self.before is None else None
        record = Record(
            op.func, op.name, sources, op.settings, line, next(named, self.layer), labels
        )
        self.records.append(record)
        if self.before is not None:
            self.compare_call(record, self.before.records, info)
        elif self.meta and op.name == "lift_fresh" and op.tensors[0].is_meta:
            raise Misfit("makes a constant whose value is not seen")
        return record

    def compare_call(self, record: Record, expected: list[Record], info: OpInfo) -> None:
        """Raise `Misfit` where an operation is another than before."""
        if len(self.records) > len(expected):
            raise Misfit("was not carried out before")
        before = expected[len(self.records) - 1]
        if record.func is not before.func or len(record.sources) != len(before.sources):
            raise Misfit("is another operation than before")
        for now, then in zip(record.sources, before.sources, strict=True):
            constants = isinstance(now, Tensor) and isinstance(then, Tensor)
            if not (_equal(now, then) if constants else type(now) is type(then) and now == then):
                raise Misfit("is given another constant or result than before")
        if not info.sized and record.settings != before.settings:
            raise Misfit("is given other numbers than before")

    def end(self, info: OpInfo, op: Op, record: Record) -> None:
        """Note what an operation gave."""
        number, made = len(self.records) - 1, self._made(info, op, record)
        for x, label in zip(op.outputs, made, strict=True):
            if info.writes:
                label.source = number
                self.write(op.args[0], label)
            elif all(x is not given for given in op.tensors):  # not handed on as it is
                label.source = number
                if info.views:
                    self.put_view(op.tensors[0], x, label)
                else:
                    self.put(x, label)
        record.outputs, record.shapes = made, [x.shape for x in op.outputs]
        if self.before is not None:
            then = self.before.records[number]
            same = all(map(self._agrees, record.outputs, then.outputs))
            if not same or (self.meta and not any(then.outputs) and record.shapes != then.shapes):
                raise Misfit("would give other channels or sizes than before")

    def _made(self, info: OpInfo, op: Op, record: Record) -> list[Label]:
        """The labels of what an operation makes."""
        if not self.layer and not record.layer and not any(record.inputs):
            return [Label() for _ in op.outputs]
        try:
            if info.rule is None or not op.outputs:
                raise Unclear("is not understood" if op.outputs else "decides by values")
            made = info.rule(self, op)
        except UNFOLLOWED as error:
            why = str(error) if isinstance(error, Unclear) else f"cannot be followed ({error})"
            record.unclear = f"{record.place}, which {why}".splitlines()[0]
            if self.before is None:
                self.channels.unfollowed.setdefault(record.layer, f"feeds {record.unclear}")
            self.pin(all_ids(record.inputs), f"feeds {record.unclear}")
            for x, label in zip(op.tensors, record.inputs, strict=True):
                self.fix(x, label)
            return [Label() for _ in op.outputs]
        return made if isinstance(made, list) else [made]

    def _agrees(self, now: Label, then: Label) -> bool:
        """Whether a tensor has the channels that it had before, less those that went."""
        assert self.before is not None
        if then.full is not None:
            expected = self.before.left(collapse(then.full)[0].flatten().abs())
            if now.full is not None:
                return torch.equal(collapse(now.full)[0].flatten().abs(), expected)
            return any(
                axis.ids is not None and torch.equal(axis.ids, expected)
                for axis in now.axes.values()
            )
        for dim, axis in then.axes.items():
            if axis.ids is None:
                continue
            expected, found = self.before.left(axis.ids), now.axes.get(dim)
            if found is not None and found.ids is not None:
                ids = found.ids
            elif now.full is not None:  # of one channel
                ids = vector_of(now.full, dim).abs()
            else:
                ids = torch.zeros_like(expected)
            if ids is not expected and not torch.equal(ids, expected):
                return False
        return bool(then) or not now


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether two constants of the network's own are the same."""
    if one is other:
        return True
    if one.shape != other.shape or one.dtype != other.dtype or one.device != other.device:
        return False
    return one.is_meta or torch.equal(one, other)


def _line_of_network() -> tuple[CodeType, int] | None:
    """The line of the network's own code that is at work; None: torch's only."""
    frame = sys._getframe(3)
    while frame is not None and frame.f_code is not RUN:
        if not frame.f_code.co_filename.startswith(_NOT_THE_NETWORKS):
            return frame.f_code, frame.f_lineno
        frame = frame.f_back  # type: ignore[assignment]
    return None


def run(network: torch.nn.Module, args: Sequence[Any], kwargs: Any, under: Propagation) -> Any:
    """The network's output on an example, under a `Propagation`."""
    with torch.inference_mode(), under:
        return network(*args, **kwargs)


RUN = run.__code__
