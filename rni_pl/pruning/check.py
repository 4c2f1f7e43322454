"""The check of a plan: the pruned network is run, and has to do what it did, less what was removed.

Each operation must be the same as before, be given the results of the same ones, and give tensors
of the sizes that are left of the channels.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from rni_pl.errors import NothingToPruneError
from rni_pl.pruning.copying import Parts
from rni_pl.pruning.dependency import DependencyGraph
from rni_pl.pruning.ids import NO_IDS, Label, all_ids, collapse
from rni_pl.pruning.ops import AnotherOperation, Misfit, Op
from rni_pl.pruning.propagate import Propagation
from rni_pl.pruning.run import Example, Run, twin, without_content
from rni_pl.pruning.surgery import Cut


class Check(Run):
    """Raises `Misfit` where an operation is not what it was.

    `expected` are the operations of the dense network, or the masked one; `kept` says which ids are
    left, bool, shape (ids,). Where `by_value`, sizes may depend on values.
    """

    def __init__(self, meta: bool, expected: list[Op], kept: Tensor, by_value: bool) -> None:
        super().__init__(meta)
        self.expected, self.kept, self.by_value = expected, kept, by_value
        self.outputs: list[Tensor] = []  # if they have values
        self.counts: dict[int, tuple[Tensor, int]] = {}  # of what is kept of vectors of ids

    def of(self, network: Parts, example: Example, training: bool) -> Exception | None:
        """Run a network: what does not fit."""
        try:
            with torch.random.fork_rng(devices=[]):
                torch.random.default_generator.manual_seed(0)
                made = self.forward(network, example, training)
        except Exception as error:  # whatever the network's code may raise
            return error
        self.outputs = [] if self.meta else made
        return Misfit("ends earlier") if len(self.ops) < len(self.expected) else None

    def begun(self, x: Tensor, number: int) -> None:
        """The same input as before."""
        x.channels = None, self.token, f"input {number}"  # type: ignore[attr-defined]

    def begin(self, op: Op) -> None:
        """Compare what is given."""
        if len(self.ops) > len(self.expected):
            raise Misfit("was not carried out before")
        before = self.expected[len(self.ops) - 1]
        if op.info is not before.info or len(op.tensors) != len(before.made_by):
            raise AnotherOperation("is another operation than before")
        for x, then in zip(op.tensors, before.made_by, strict=True):
            now = self.made_by(x)
            constants = isinstance(now, Tensor) and isinstance(then, Tensor)
            if not (_equal(now, then) if constants else type(now) is type(then) and now == then):
                raise Misfit("is given another constant or result than before")
        if op.info.same(op) != before.same:
            raise Misfit("is given other numbers than before")

    def end(self, op: Op) -> None:
        """Compare what was made."""
        number = len(self.ops) - 1
        results, before = op.results, self.expected[number]
        if len(results) != len(before.outputs):
            raise Misfit("gives another number of tensors than before")
        for x, label, shape in zip(results, before.outputs, before.shapes, strict=True):
            if len(x.shape) != len(shape) or not self._fits(x.shape, label, shape):
                raise Misfit("would give other channels or sizes than before")
            if op.name in PLACES and not self._places_fit(op, label, before.inputs[0]):
                raise Misfit("takes other channels than before")
            if op.info.writes or all(x is not given for given in op.tensors):
                x.channels = None, self.token, number  # type: ignore[attr-defined]

    def _fits(self, found: Sequence[int], label: Label, before: Sequence[int]) -> bool:
        """Whether a tensor has the size that is left of what it had."""
        left = list(found if self.by_value else before)
        if label.full is not None:
            kept = self.kept[collapse(label.full)[0].abs()]
            for d in [d for d in range(kept.ndim) if kept.size(d) > 1]:
                left[d] = int(kept.movedim(d, 0).flatten(1).any(1).sum())
        for d, axis in label.axes.items():
            if axis.ids is not None:
                left[d] = self._count(axis.ids)
        return list(found) == left and (0 not in left or 0 in before)

    def _count(self, ids: Tensor) -> int:
        if id(ids) not in self.counts:
            self.counts[id(ids)] = ids, int(self.kept[ids].sum())
        return self.counts[id(ids)][1]

    def _places_fit(self, op: Op, made: Label, given: Label | None) -> bool:
        """Whether numbers of places, which stay the same, are those of the same channels."""
        x: Tensor = op.args[0]
        for d, axis in given.axes.items() if given else ():
            if axis.ids is None or d not in _dims_of_places(op):
                continue
            ids = axis.ids[self.kept[axis.ids]]
            ids = ids.view([-1 if e == d else 1 for e in range(x.ndim)]).expand(x.shape)
            taken = collapse(op.info.func(ids, *op.args[1:], **op.kwargs))[0].flatten()
            known = made.ids()
            if not torch.equal(taken, known[self.kept[known]]):
                return False
        return True


# Operations that take elements at places by number.
PLACES = {"slice", "narrow", "select", "roll"}


def _dims_of_places(op: Op) -> list[int]:
    dims = op.get("dims" if op.name == "roll" else "dim")
    dims = [dims] if isinstance(dims, int) else dims or range(op.args[0].ndim)
    return [d % op.args[0].ndim for d in dims]


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether two constants of the network's own are the same."""
    if one is other:
        return True
    if one.shape != other.shape or one.dtype != other.dtype or one.device != other.device:
        return False
    return one.is_meta or torch.equal(one, other)


def fits(
    graph: DependencyGraph, keep: Tensor, cut: Cut, pruned: Mapping[str, Tensor] | None = None
) -> list[Tensor] | None:
    """Run the network that is left: its outputs on the example, None where something does not fit.

    Then the channels that reach that line of the network's code are fixed. `keep` says which
    dependency groups stay, bool, shape (groups,). With `pruned`, the parameters and buffers of the
    pruned network, the outputs have values.
    """
    outputs: list[Tensor] = []
    kept = keep[graph.group_of]
    for training, records in graph.runs.items():
        expected = records
        example = (training and graph.training_example) or graph.example
        real = graph.real or (pruned is not None and not training)
        if graph.real:
            # Where the code decides by values, the masked network's way through it counts.
            known = len(kept), len(graph.reasons)
            expected = _way_of_masked(graph, cut, training)
            if known != (graph.channels.union.size, len(graph.reasons)):
                return None  # it took another way, and more is known now
        for meta in (False, True) if real and not graph.real else (not real,):
            check = Check(meta, expected, kept, graph.real)
            error = check.of(_smaller(graph, cut, pruned, not meta), example, training)
            if error is None or type(error) is Misfit:
                break  # others may be of values, which are not what is checked
        if error is not None:
            _fix_misfit(graph, error, check)
            return None
        outputs = outputs if training else check.outputs
    return outputs


def _smaller(
    graph: DependencyGraph, cut: Cut, pruned: Mapping[str, Tensor] | None, real: bool
) -> Parts:
    """A copy of the pruned network for one run; with values it shares the parameters' memory."""

    def stand_in(name: str, x: Tensor) -> Tensor:
        if not real:
            return without_content(x, cut.shape(name, x) if name in cut.left else None)
        x = cut.slice(name, x) if pruned is None else pruned[name].detach()
        if not isinstance(graph.parts.tensors[name], nn.Parameter):
            return x.clone()
        new = torch.empty(0, dtype=x.dtype, device=x.device)
        return new.set_(x.untyped_storage(), x.storage_offset(), x.size(), x.stride())

    return cut.resize(twin(graph.parts, stand_in))


def _way_of_masked(graph: DependencyGraph, cut: Cut, training: bool) -> list[Op]:
    tensors = masked(graph, cut)
    network = twin(
        graph.parts, lambda name, x: tensors.get(name, x).clone(), graph.channels.parameters
    )
    under = Propagation(graph.channels, meta=False)
    under.forward(network, (training and graph.training_example) or graph.example, training)
    graph.resolve()
    return under.ops


def masked(graph: DependencyGraph, cut: Cut) -> dict[str, Tensor]:
    """The parameters of the network in which what is cut is 0 instead, as far as they differ.

    The scales of removed channels, or the rows and biases that make them where these rank them, and
    the affine parameters that follow are at 0; where a channel is a constant then, so are the
    weights that read it.
    """
    weights = {name for name, _ in graph.channels.columns}
    constant = torch.zeros(graph.channels.union.size, dtype=torch.bool, device="cpu")
    constant[torch.cat([NO_IDS, *graph.channels.constants])] = True
    any_constant = bool(constant.any())
    found: dict[str, Tensor] = {}
    for name, masks in cut.left.items():
        parameter, label = graph.parts.tensors[name], graph.channels.parameters[name]
        spared = name in weights and not any_constant and not graph.channels.by_rows
        if not isinstance(parameter, nn.Parameter) or spared:
            continue
        for dim, mask in masks.items():
            gone = ~mask.kept
            if (name, dim) in graph.channels.columns:
                gone &= constant[label.axes[dim].ids]
            elif name in weights and not graph.channels.by_rows:
                continue
            index = gone.nonzero().flatten().to(parameter.device)
            silent = label.silent_at or 0.0
            found[name] = found.get(name, parameter.detach()).index_fill(dim, index, silent)
    return found


def _fix_misfit(graph: DependencyGraph, error: Exception, check: Check) -> None:
    """Fix the channels at the operation that does not fit; if none are, those around it."""
    expected = check.expected
    place = len(check.ops) - check.busy
    record = expected[min(max(place, 0), len(expected) - 1)]
    reason = str(error).strip().splitlines() or [type(error).__name__]
    why = f"feeds {record.place}, which does not fit fewer channels ({reason[0]})"
    # Numbers in the network's code fit nowhere that they are used: one round for all places.
    near = [record] if record.layer else _alike(record, expected)
    steps: Sequence[list[Label]] = (
        [x for r in near for x in (r.activations if record.layer else r.outputs)],
        [x for r in near for x in (*r.activations, *r.outputs)],
        [x for r in expected if record.line and r.line == record.line for x in r.activations],
        *_wider(expected, place),
    )
    if not any(graph.fix(all_ids(labels), why) for labels in steps):
        raise NothingToPruneError(f"nothing to prune: {why}")


def _wider(ops: list[Op], place: int) -> Iterator[list[Label]]:
    """The labels of the operations around one, in ever wider circles."""
    for n in range(len(ops).bit_length() + 1):
        near = ops[max(place - 2**n, 0) : place + 2**n]
        yield [x for op in near for x in op.activations]


def _alike(op: Op, ops: list[Op]) -> list[Op]:
    """The operations that are carried out at the same place of the same line of code."""
    if op.line is None:
        return [op]
    places: dict[int, list[Op]] = {}
    place, before = 0, None
    for each in ops:
        place = place + 1 if before is not None and before.line == each.line else 0
        before = each
        if each.line == op.line and each.info is op.info:
            places.setdefault(place, []).append(each)
    return next(found for found in places.values() if op in found)
