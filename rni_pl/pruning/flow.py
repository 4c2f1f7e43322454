"""Runs a traced network on channel numbers instead of activations.

The first run hands out the numbers and notes which of them are tied, read or fixed. A replay runs
the same graph on the channels that are kept and finds any operation that would no longer fit: a
split at a fixed size, a view with a baked-in width, a decision by the number of channels.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from rni_pl.pruning import aliases, kinds, ops
from rni_pl.pruning.numbering import (
    LayerChannels,
    Ties,
    Unknown,
    collapse,
    fixed,
    map_layers,
    numbers_in,
    same_channels,
    tensors_in,
)
from rni_pl.pruning.tracing import Traced

# What an operation may raise on tensors that it does not fit.
MISFITS = (RuntimeError, IndexError, ValueError, TypeError, AttributeError, AssertionError)
BASE = 2**31  # packs two channel numbers into one int64


class Unfit(Exception):
    """An operation that does not fit the channels kept, and what it reads that shows it."""

    def __init__(self, message: str, suspects: Sequence[fx.Node] = ()) -> None:
        super().__init__(message)
        self.suspects = list(suspects)


class Flow:
    """The network on channel numbers; see the head of `rni_pl.pruning.graph`."""

    def __init__(self, *traced: Traced) -> None:
        """`traced`: the network in evaluation and, where layers run there alone, in training."""
        self.modules, self.graphs = traced[0].modules, [each.graph for each in traced]
        self.shapes = {node: shape for each in traced for node, shape in each.shapes.items()}
        called = {str(n.target) for g in self.graphs for n in g.nodes if n.op == "call_module"}
        self.parameters = set().union(*(each.parameters for each in traced))
        self.known = {name for name in called if kinds.is_known(self.modules[name])}
        self.images = self._batch_size()
        self.ties = Ties()
        self.layers: dict[str, LayerChannels] = {}
        self.scaled: list[str] = []
        self.positions: dict[str, int] = {}
        self.reasons: list[tuple[Tensor, str]] = []
        self.coupled: list[tuple[Tensor, str]] = []
        self.unit_of: Tensor | None = None
        self.node: fx.Node
        self._keep: Tensor | None = None  # per channel number; None while numbering
        self._results: dict[fx.Node, Any] = {}
        self._now: dict[fx.Node, Any] = {}  # the results of the present run
        self._calls: dict[fx.Node, LayerChannels] = {}
        self._kept_calls: dict[fx.Node, LayerChannels] = {}  # of the present replay
        self._held: dict[fx.Node, Any] = {}  # what has to be the same when replayed
        self._pairs: dict[fx.Node, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        self.opaque: dict[fx.Node, str] = {}  # operations that are not understood, and why not
        shared = aliases.sharing_tensors(self.modules)
        self.locked = dict.fromkeys(shared, "whose parameters or buffers are shared")
        for name in {name for each in traced for name in each.reads.sizes}:
            self.lock(name, "whose sizes the network's own code reads")

    def _batch_size(self) -> int:
        """Images in the example: the first dimension of its first tensor."""
        given = [fixed(self.shapes[n]) for n in self.graphs[0].nodes if n.op == "placeholder"]
        return next((x.shape[0] for x in tensors_in(given) if x.ndim), 1)

    def number(self) -> None:
        """First run: hand out the numbers."""
        self._run(self._number)
        for name in self.locked.keys() & self.layers.keys():
            record = self.layers[name]
            why = f"is held by {name}, {self.locked[name]}"
            self.pin(numbers_in((record.inputs, record.outputs)), why)

    def replay(self, keep: Tensor) -> tuple[Tensor, str] | None:
        """Run on the units kept; the units of the first operation that does not fit, and why."""
        assert self.unit_of is not None
        self._keep = keep[self.unit_of]
        self._kept_calls = map_layers(self._calls, self._kept)
        try:
            self._run(self._check)
        except Unfit as unfit:
            return self._culprits(keep, unfit.suspects), f"{kinds.describe(self.node)} {unfit}"
        finally:
            self._keep = None
        return None

    def _run(self, run_node: Callable[[tuple, dict], Any]) -> None:
        """All operations in order, on channel numbers."""
        results: dict[fx.Node, Any] = {}
        self._now = results
        for graph in self.graphs:
            for node in graph.nodes:
                self.node = node
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), results.__getitem__)
                results[node] = run_node(args, kwargs)
                if kinds.is_in_place(node):
                    results[kinds.changed_by(node)] = results[node]

    def _number(self, args: tuple, kwargs: dict) -> Any:
        try:
            result = ops.run(self, args, kwargs)
            self._check_aliases(result)
        except (Unknown, *MISFITS) as error:
            why = str(error) if isinstance(error, Unknown) else f"cannot be followed ({error})"
            self.opaque[self.node] = why.splitlines()[0]
            self.pin_all((args, kwargs), f"feeds {self.place_name}, which {why}".splitlines()[0])
            result = fixed(self.shapes[self.node])
        self._results[self.node] = result
        return result

    def _check(self, args: tuple, kwargs: dict) -> Any:
        if self.node in self.opaque:
            self.pin_all((args, kwargs), "")
            return self._results[self.node]
        try:
            return ops.run(self, args, kwargs)
        except (Unknown, *MISFITS) as error:
            reason = str(error).splitlines()[0]
            raise Unfit(f"does not fit fewer channels ({reason})") from error

    def _check_aliases(self, result: Any) -> None:
        """Raise where channels change in place that are read by another name later on."""
        if not kinds.is_in_place(self.node) or not isinstance(result, Tensor):
            return
        before = self._now[kinds.changed_by(self.node)]
        same = result.shape == before.shape and torch.equal(*collapse(result, before))
        if not same and aliases.read_elsewhere(self.node, self.modules):
            raise Unknown("changes in place what is read elsewhere, too")

    # What the handlers of rni_pl.pruning.ops call, in both runs alike.

    def make(self, name: str, inputs: Tensor | None, count: int) -> Tensor:
        """Channels that layer `name` makes (negative: not scaled yet), from those it reads."""
        if self._keep is not None:
            return -self._fitting(inputs=inputs).outputs
        if inputs is not None:
            self.pin(inputs[inputs < 0], f"reaches {name} not only through a BatchNorm")
            inputs = inputs.abs()
        shape = self.shapes[self.node]
        # Positions of one image at which a layer makes its channels, over all its calls.
        here = shape.numel() // (self.images * count)
        if self.node.graph is self.graphs[0]:  # not what costs in training alone
            self.positions[name] = self.positions.get(name, 0) + here
        if name not in self.layers:
            self.layers[name] = LayerChannels(inputs, self.ties.new(count))
        elif inputs is not None:  # a second call reads and makes the same channels
            self.tie(inputs, self.layers[name].inputs)
        self._calls[self.node] = LayerChannels(inputs, self.layers[name].outputs)
        return -self.layers[name].outputs

    def pass_through(self, name: str, channels: Tensor, scaled: bool) -> None:
        """Note that layer `name` has parameters for these channels, and whether as scales."""
        if self._keep is not None:
            self._fitting(outputs=channels)
            return
        channels = channels.abs()
        self._calls[self.node] = LayerChannels(None, channels)
        if name in self.layers:
            self.tie(channels, self.layers[name].outputs)
            return
        self.layers[name] = LayerChannels(None, channels)
        if scaled:
            self.scaled.append(name)

    def tie(self, a: Tensor, b: Tensor | None, coupled: bool = False) -> None:
        """Let the channels of two vectors go only together, entry by entry."""
        assert b is not None
        a, b = a.abs().flatten(), b.abs().flatten()
        if self._keep is not None:
            self._check_meeting(a, b)
            return
        self._pairs[self.node].append((a, b))
        pairs, free = torch.stack([a, b]), a != b
        with_fixed = a * b == 0
        if bool(with_fixed.any()):
            self.pin(pairs[:, with_fixed], f"meets fixed channels in {self.place_name}")
            free &= ~with_fixed
        pairs = pairs[:, free]
        self.ties.tie(pairs)
        if coupled:
            self.coupled.append((pairs[0], self.place_name))

    def pin(self, numbers: Tensor, why: str) -> None:
        """Keep these channels for good."""
        if self._keep is None and numbers.numel():
            self.reasons.append((numbers.abs().unique(), why))

    def pin_all(self, values: Any, why: str) -> None:
        """Keep every channel in nested values, and see to it that a replay finds the same ones."""
        self.hold_settings(values)
        self.pin(numbers_in(values), why)

    def hold_settings(self, values: Any) -> None:
        """See to it that a replay gives the present operation the same; once an operation."""
        if self._keep is None:
            self._held[self.node] = values
        elif not same_channels(self._held[self.node], values):
            inputs = self.node.all_input_nodes
            others = [n for n in inputs if not same_channels(self._results[n], self._now[n])]
            raise Unfit("would be given other channels or numbers than before", others)

    def lock(self, name: str, why: str) -> None:
        """Keep the channels of layer `name`, of which something is used elsewhere too."""
        self.locked.setdefault(name, why)

    @property
    def replaying(self) -> bool:
        """Whether this is a replay."""
        return self._keep is not None

    @property
    def sizes_are_computed(self) -> bool:
        """Whether the present operation's sizes come from other results, not from constants."""
        return len(self.node.all_input_nodes) > 1

    @property
    def adds_parameter(self) -> bool:
        """Whether the present operation takes a parameter or buffer of the network."""
        return any(node in self.parameters for node in self.node.all_input_nodes)

    @property
    def place_name(self) -> str:
        """The present operation, as a user knows it."""
        return kinds.describe(self.node)

    def units_at(self, nodes: list[fx.Node]) -> Tensor:
        """The units that some operations read or make."""
        assert self.unit_of is not None
        around = {m for node in nodes for m in (node, *node.all_input_nodes)}
        return self.unit_of[numbers_in([self._results[node] for node in around])].unique()

    # Checks of the replay.

    def _fitting(
        self, inputs: Tensor | None = None, outputs: Tensor | None = None
    ) -> LayerChannels:
        """The present call's channels that are kept, where it would read and pass just those."""
        kept = self._kept_calls[self.node]
        for expected, found in ((kept.inputs, inputs), (kept.outputs, outputs)):
            if found is not None and not torch.equal(expected, found.abs()):  # type: ignore[arg-type]
                raise Unfit("would read other channels than before")
        return kept

    def _check_meeting(self, a: Tensor, b: Tensor) -> None:
        """Raise where these channels did not meet before, entry by entry."""
        assert self._keep is not None
        before = self._pairs[self.node]
        for one, other in before:
            kept = self._keep[one]
            if torch.equal(one[kept], a) and torch.equal(other[kept], b):
                return  # nearly always: the same, in the same order
        known = torch.cat([one * BASE + other for one, other in before])
        if not torch.isin(a * BASE + b, known).all():
            raise Unfit("would meet other channels than before")

    def _kept(self, numbers: Tensor, lengths: list[int]) -> Sequence[Tensor]:
        """Pieces of the given lengths, each without the channels that are removed."""
        assert self._keep is not None
        kept = self._keep[numbers]
        ends = torch.tensor(lengths).cumsum(0) - 1
        counts = kept.cumsum(0)[ends].diff(prepend=torch.zeros(1, dtype=torch.long))
        return numbers[kept].split(counts.tolist())

    def _culprits(self, keep: Tensor, suspects: list[fx.Node]) -> Tensor:
        """Units that the present node reads, some of them removed; or every removed unit.

        It looks at `suspects` first, then at what these read, and so on; without any at the node.
        """
        assert self.unit_of is not None
        nodes, call = suspects or [self.node], self._calls.get(self.node)
        # Of a layer that would read other channels than before, those that it makes may go.
        read = [c.outputs if c.inputs is None else c.inputs for c in [call] if c]
        numbers = numbers_in((read, [self._results[node] for node in suspects]))
        while nodes and bool(keep[self.unit_of[numbers]].all()):
            nodes = [m for node in nodes for m in node.all_input_nodes]
            numbers = numbers_in((numbers, [self._results[node] for node in nodes]))
        units = self.unit_of[numbers].unique()
        return units if not bool(keep[units].all()) else (~keep).nonzero().flatten()
