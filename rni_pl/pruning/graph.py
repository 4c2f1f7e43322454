"""Which channels of a network belong together, read off its own traced graph.

Every channel that a layer makes gets a number. The graph is then run a second time on tensors
that hold, in place of activations, the number of the channel each element belongs to: a view, a
concatenation or a channel shuffle moves the numbers exactly as it moves the activations, with no
code of ours. Where two numbers meet in an addition, their channels can only go together; where a
layer reads a number, it loses an input when that channel goes.

Number 0 stands for whatever cannot be removed. A number is negative until a BatchNorm has scaled
the channel: a layer that reads it then would see more than the scale, so the channel has to stay.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from rni_pl.errors import PruningError
from rni_pl.pruning import flow, kinds, surgery, tracing
from rni_pl.pruning.numbering import LayerChannels, map_layers


@dataclass
class ChannelGraph:
    """Units of channels that can only be removed together, and the layers that hold them.

    Unit 0 is everything that has to stay. `reasons` maps a unit to why it has to stay; `coupled`
    maps a unit tied by residual additions to the name of one such addition; `positions` gives
    the number of output positions of a layer, for counting multiply-accumulates. `complete` says
    whether every layer was seen: some may run in training alone.
    """

    layers: dict[str, LayerChannels]
    scaled: list[str]
    reasons: dict[int, str]
    coupled: dict[int, str]
    size: int
    positions: dict[str, int] = field(default_factory=dict)
    complete: bool = True
    flow: "flow.Flow | None" = field(default=None, repr=False)

    def unfit(self, keep: Tensor) -> tuple[Tensor, str] | None:
        """Run the graph on the channels kept: None where every operation still fits.

        Otherwise the units that the first unfit operation reads, and why it does not fit.
        `keep` is a bool tensor over units, shape (size,).
        """
        assert self.flow is not None
        return self.flow.replay(keep)

    def nodes(self, layer: str) -> list[fx.Node]:
        """The calls of a layer in evaluation; in training, where it is called there alone."""
        assert self.flow is not None
        for graph in self.flow.graphs:
            calls = [n for n in graph.nodes if n.op == "call_module" and n.target == layer]
            if calls:
                return calls
        return []

    def why_unknown(self, layer: str) -> str:
        """Why the graph has no channels of a layer."""
        assert self.flow is not None
        for node in self.nodes(layer):
            return self.flow.opaque.get(node, "has a scale that does not silence a channel at 0")
        used = any(str(n.target).startswith(f"{layer}.") for n in self._all_nodes)
        return "has a forward pass of its own" if used else "is not reached by the forward pass"

    def why_fixed(self, layer: str) -> str:
        """Why the channels of a layer are among those that stay whatever is asked."""
        assert self.flow is not None
        node = self.nodes(layer)[0]
        while node.all_input_nodes:
            node = node.all_input_nodes[0]
            if node in self.flow.opaque:
                return f"comes from {kinds.describe(node)}, which {self.flow.opaque[node]}"
            if str(node.target) in self.layers:
                break  # it makes these channels
        return "holds the network's input or other fixed channels"

    def maker_of(self, norm: str) -> str | None:
        """The convolution right in front of a norm layer, where nothing else reads it.

        None as well where one of the two shares its parameters with other layers.
        """
        calls = self.nodes(norm)
        before = calls[0].all_input_nodes[0] if len(calls) == 1 else None
        if before is None or before.op != "call_module" or len(before.users) != 1:
            return None
        name = str(before.target)
        makes = name in self.layers and self.layers[name].inputs is not None
        assert self.flow is not None
        free = self.flow.locked.keys().isdisjoint((name, norm))
        return name if makes and free and len(self.nodes(name)) == 1 else None

    def norm_behind(self, layer: str) -> str | None:
        """The norm layer that alone reads the output of a layer that is called once."""
        calls = self.nodes(layer)
        users = list(calls[0].users) if len(calls) == 1 else []
        if len(users) != 1 or users[0].op != "call_module" or users[0].target not in self.scaled:
            return None
        name = str(users[0].target)
        return name if len(self.nodes(name)) == 1 else None

    def units_through(self, wanted: Callable[[fx.Node], bool]) -> Tensor:
        """Units that an operation for which `wanted` holds reads or makes."""
        assert self.flow is not None
        return self.flow.units_at([n for n in self._all_nodes if wanted(n)])

    def adds_parameter(self, node: fx.Node) -> bool:
        """Whether an operation takes a parameter or buffer beside an activation."""
        assert self.flow is not None
        return not self.flow.parameters.isdisjoint(node.all_input_nodes)

    @property
    def _all_nodes(self) -> list[fx.Node]:
        assert self.flow is not None
        return [node for graph in self.flow.graphs for node in graph.nodes]


def trace(model: nn.Module, example_inputs: Any) -> ChannelGraph:
    """Trace the channel graph of `model` for one example batch.

    Raises:
        PruningError: `torch.fx` cannot trace the model, or the example does not fit it.
        TypeError: it is no network.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a network, not {model!r:.80}")
    inputs = as_tuple(example_inputs)
    wrapped = kinds.wrapper_of(model)
    if wrapped:
        raise PruningError(f"{type(model).__name__} wraps a network: prune that one ({wrapped})")
    if kinds.has_forward_set(model):
        raise PruningError(
            f"the forward pass of this {type(model).__name__} was replaced, and torch.fx would "
            "trace that of its class: make a class of it"
        )
    # Code that is traced may note results on its modules (caches): they are none of the model's.
    passes = [tracing.trace(_twin(model).eval(), inputs)]
    complete = not _unreached(passes[0]) and not passes[0].reads.mode
    if not complete:  # auxiliary heads, and what else there is in training alone
        in_training = _trace_in_training(model, inputs)
        complete = in_training is not None
        passes += [in_training] if in_training else []
    channel_flow = flow.Flow(*passes)
    channel_flow.number()
    return _resolve(channel_flow, complete)


def as_tuple(example_inputs: Any) -> tuple[Any, ...]:
    """The arguments of the forward pass: one tensor, or several."""
    if isinstance(example_inputs, list | tuple):
        return tuple(example_inputs)
    return (example_inputs,)


def _twin(model: nn.Module) -> nn.Module:
    try:
        return surgery.share_tensors(model)
    except RuntimeError as error:  # tensors that were calculated (torch.nn.utils.prune's) cannot be
        reason = str(error).splitlines()[0]
        raise PruningError(f"{type(model).__name__} cannot be copied: {reason}") from error


def _trace_in_training(model: nn.Module, inputs: tuple[Any, ...]) -> tracing.Traced | None:
    """The graph of the training mode, where it can be traced."""
    try:
        return tracing.trace(_twin(model).train(), inputs)
    except PruningError:
        return None


def _unreached(traced: tracing.Traced) -> bool:
    """Whether some layer with parameters is not part of the traced graph."""
    called = traced.layers
    seen = called | {name[:i] for name in called for i, c in enumerate(name) if c == "."}
    for name, module in traced.modules.items():
        if module._parameters and name not in seen:
            ancestors = (name[:i] for i, c in enumerate(name) if c == ".")
            if called.isdisjoint(ancestors):
                return True
    return False


def _resolve(channel_flow: "flow.Flow", complete: bool) -> ChannelGraph:
    """Replace channel numbers by units, numbered from 1 in the order in which they appear."""
    roots = channel_flow.ties.roots()
    unit_of_root, compact = torch.unique(roots, return_inverse=True)  # root 0 stays unit 0
    channel_flow.unit_of = compact
    layers = map_layers(
        channel_flow.layers, lambda numbers, lengths: compact[numbers].split(lengths)
    )
    return ChannelGraph(
        layers=layers,
        scaled=[name for name in channel_flow.scaled if name in layers],
        reasons=_by_unit(channel_flow.reasons, compact),
        coupled=_by_unit(channel_flow.coupled, compact),
        size=len(unit_of_root),
        positions=channel_flow.positions,
        complete=complete,
        flow=channel_flow,
    )


def _by_unit(noted: list[tuple[Tensor, str]], unit_of: Tensor) -> dict[int, str]:
    """What was noted first about each unit."""
    found: dict[int, str] = {}
    for numbers, why in reversed(noted):
        found.update(dict.fromkeys(unit_of[numbers].tolist(), why))
    return found
