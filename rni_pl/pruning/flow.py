"""Runs a traced network on channel numbers instead of activations.

The first run hands out the numbers and notes which of them are tied, read or fixed. A replay runs
the same graph on the channels that are kept and finds any operation that would no longer fit: a
split at a fixed size, a view with a baked-in width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from rni_pl.pruning import ops
from rni_pl.pruning.numbering import Unknown, collapse, fixed


@dataclass
class Record:
    """Channel numbers that a layer reads (None: it keeps its channels) and makes."""

    inputs: Tensor | None
    outputs: Tensor


class Unfit(Exception):
    """An operation that does not fit the channels kept."""


BASE = 2**31  # packs two channel numbers into one int64


class Ties:
    """Union-find over channel numbers; number 0 is the fixed channel and never tied."""

    def __init__(self) -> None:
        self.parent = [0]

    def new(self, count: int) -> Tensor:
        """`count` fresh numbers."""
        start = len(self.parent)
        self.parent.extend(range(start, start + count))
        return torch.arange(start, start + count)

    def root(self, number: int) -> int:
        """The smallest number tied to this one."""
        while self.parent[number] != number:
            self.parent[number] = self.parent[self.parent[number]]
            number = self.parent[number]
        return number

    def tie(self, a: int, b: int) -> None:
        """Make `a` and `b` members of one unit."""
        a, b = sorted((self.root(a), self.root(b)))
        self.parent[b] = a

    def roots(self) -> Tensor:
        """The root of every number, shape (numbers,)."""
        return torch.tensor([self.root(number) for number in range(len(self.parent))])


class Flow(fx.Interpreter):
    """The network on channel numbers; see the head of `rni_pl.pruning.graph`."""

    def __init__(self, graph_module: fx.GraphModule, shapes: dict[fx.Node, Any]) -> None:
        super().__init__(graph_module)
        self.shapes = shapes
        self.ties = Ties()
        self.layers: dict[str, Record] = {}
        self.scaled: list[str] = []
        self.positions: dict[str, int] = {}
        self.reasons: list[tuple[int, str]] = []
        self.coupled: list[tuple[int, str]] = []
        self.unit_of: Tensor | None = None
        self.node: fx.Node
        self._keep: Tensor | None = None  # per channel number; None while numbering
        self._results: dict[fx.Node, Any] = {}
        self._pairs: dict[tuple[fx.Node, int], Tensor] = {}
        self._opaque: set[fx.Node] = set()
        self._locked: set[str] = set()

    def number(self, inputs: tuple[Tensor, ...]) -> None:
        """First run: hand out the numbers."""
        self.run(*(fixed(x.shape) for x in inputs))
        for name in self._locked & self.layers.keys():
            record = self.layers[name]
            self.pin_all((record.inputs, record.outputs), f"is used outside its layer {name}")

    def replay(self, keep: Tensor) -> tuple[Tensor, str] | None:
        """Run on the units kept; the removed units that some operation cannot lose, and why."""
        assert self.unit_of is not None
        self._keep = keep[self.unit_of]
        placeholders = [node for node in self._results if node.op == "placeholder"]
        try:
            self.run(*(self._results[node] for node in placeholders))
        except Unfit as unfit:
            return self._culprits(keep), f"{describe(self.node)} {unfit}"
        finally:
            self._keep = None
        return None

    def run_node(self, n: fx.Node) -> Any:
        """One operation on channel numbers."""
        self.node = n
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        if self._keep is not None:
            return self._replay_node(n, args, kwargs)
        try:
            result = ops.run(self, args, kwargs)
        except Unknown as unknown:
            self._opaque.add(n)
            self.pin_all((args, kwargs), f"feeds {describe(n)}, which {unknown}")
            result = fixed(self.shapes[n])
        self._results[n] = result
        return result

    def _replay_node(self, n: fx.Node, args: tuple, kwargs: dict) -> Any:
        if n in self._opaque:
            return self._results[n]
        try:
            return ops.run(self, args, kwargs)
        except (Unknown, RuntimeError, IndexError, ValueError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise Unfit(f"does not fit fewer channels ({reason})") from error

    # What the handlers of rni_pl.pruning.ops call, in both runs alike.

    def make(self, name: str, inputs: Tensor | None, count: int) -> Tensor:
        """Channels that layer `name` makes (negative: not scaled yet), from those it reads."""
        if self._keep is not None:
            return -self._fitting(self.layers[name], inputs).outputs
        if inputs is not None:
            unscaled = -inputs[inputs < 0]
            self.pin(unscaled, f"is read by {name} without a BatchNorm in between")
            inputs = inputs.abs()
        self._count_positions(name, count)
        if name in self.layers:  # a layer that is called twice reads and makes the same channels
            record = self.layers[name]
            if inputs is not None and record.inputs is not None:
                self.tie(inputs, record.inputs)
            return -record.outputs
        self.layers[name] = Record(inputs, self.ties.new(count))
        return -self.layers[name].outputs

    def _count_positions(self, name: str, count: int) -> None:
        """Positions of one image at which a layer makes its channels, over all its calls."""
        shape = self.shapes[self.node]
        self.positions[name] = self.positions.get(name, 0) + shape.numel() // (shape[0] * count)

    def pass_through(self, name: str, channels: Tensor, scaled: bool) -> None:
        """Note that layer `name` has parameters for these channels, and whether as scales."""
        channels = channels.abs()
        if self._keep is not None:
            self._fitting(Record(None, self.layers[name].outputs), None, channels)
        elif name in self.layers:
            self.tie(channels, self.layers[name].outputs)
        else:
            self.layers[name] = Record(None, channels)
            if scaled:
                self.scaled.append(name)

    def tie(self, a: Tensor, b: Tensor, coupled: bool = False) -> None:
        """Let the channels of two vectors go only together, entry by entry."""
        a, b = a.abs().flatten(), b.abs().flatten()
        codes = torch.unique(a * BASE + b)
        place = (self.node, int(coupled))
        if self._keep is not None:
            if place not in self._pairs or not torch.isin(codes, self._pairs[place]).all():
                raise Unfit("would meet other channels than before")
            return
        self._pairs[place] = torch.cat([self._pairs.get(place, codes), codes])
        for code in codes.tolist():
            one, other = divmod(code, BASE)
            if one == other:
                continue
            if one == 0 or other == 0:
                self.reasons.append((one + other, f"meets fixed channels in {self.place_name}"))
                continue
            self.ties.tie(one, other)
            if coupled:
                self.coupled.append((one, self.place_name))

    def pin(self, numbers: Tensor, why: str) -> None:
        """Keep these channels for good."""
        if self._keep is None:
            self.reasons += [(number, why) for number in numbers.abs().unique().tolist()]

    def pin_all(self, values: Any, why: str) -> None:
        """Keep every channel in nested values."""
        self.pin(_numbers(values), why)

    def lock(self, name: str) -> None:
        """Keep the channels of layer `name`, whose parameters are used elsewhere too."""
        self._locked.add(name)

    @property
    def replaying(self) -> bool:
        """Whether this is a replay."""
        return self._keep is not None

    @property
    def sizes_are_computed(self) -> bool:
        """Whether the present operation's sizes come from other results, not from constants."""
        return len(self.node.all_input_nodes) > 1

    @property
    def place_name(self) -> str:
        """The present operation, as a user knows it."""
        return describe(self.node)

    def units_at(self, nodes: list[fx.Node]) -> Tensor:
        """The units that some operations read or make."""
        assert self.unit_of is not None
        around = {m for node in nodes for m in (node, *node.all_input_nodes)}
        return self.unit_of[_numbers([self._results[node] for node in around]).abs()].unique()

    # Checks of the replay.

    def _fitting(
        self, record: Record, inputs: Tensor | None, outputs: Tensor | None = None
    ) -> Record:
        """The record on the channels kept, where the layer would read and make just those."""
        kept = Record(self._kept(record.inputs), self._kept(record.outputs))
        for expected, found in ((kept.inputs, inputs), (kept.outputs, outputs)):
            if (
                expected is not None
                and found is not None
                and not torch.equal(expected, found.abs())
            ):
                raise Unfit("would read other channels than before")
        return kept

    def _kept(self, numbers: Any) -> Any:
        assert self._keep is not None
        return None if numbers is None else numbers[self._keep[numbers]]

    def _culprits(self, keep: Tensor) -> Tensor:
        """Removed units that the present node reads; failing that, every removed unit."""
        assert self.unit_of is not None
        read = [self._results[node] for node in self.node.all_input_nodes]
        record = self.layers.get(str(self.node.target))
        numbers = _numbers((read, record.inputs if record else None)).abs()
        units = self.unit_of[numbers].unique()
        removed = units[~keep[units]]
        return removed if len(removed) else (~keep).nonzero().flatten()


def describe(node: fx.Node) -> str:
    """An operation as a user knows it: its layer's name, or what it calls and where."""
    if node.op == "call_module":
        return str(node.target)
    called = node.target if isinstance(node.target, str) else node.target.__name__
    stack = node.meta.get("nn_module_stack") or {}
    inside = next(reversed(stack.values()), ("",))[0] if stack else ""
    return f"{called} in {inside}" if inside else str(called)


def map_tensors(value: Any, function: Callable[[Tensor], Any]) -> Any:
    """Apply `function` to every tensor of nested tuples, lists and dicts."""
    return fx.node.map_aggregate(value, lambda x: function(x) if isinstance(x, Tensor) else x)


def _numbers(values: Any) -> Tensor:
    """All distinct channel numbers in nested values."""
    found: list[Tensor] = [torch.zeros(0, dtype=torch.long)]
    map_tensors(values, lambda x: found.append(collapse(x).flatten()))
    return torch.cat(found).unique()
