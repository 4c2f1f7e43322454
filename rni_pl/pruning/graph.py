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
from rni_pl.pruning import flow, ops


@dataclass
class LayerChannels:
    """The channels that a layer reads and makes, as unit numbers.

    `inputs` has one entry per input channel (or input feature of a linear layer), `outputs` one
    per output channel. Layers that keep their channels (BatchNorm, PReLU) have `outputs` alone.
    """

    inputs: Tensor | None
    outputs: Tensor


@dataclass
class ChannelGraph:
    """Units of channels that can only be removed together, and the layers that hold them.

    Unit 0 is everything that has to stay. `reasons` maps a unit to why it has to stay; `coupled`
    maps a unit tied by residual additions to the name of one such addition; `positions` gives
    the number of output positions of a layer, for counting multiply-accumulates.
    """

    layers: dict[str, LayerChannels]
    scaled: list[str]
    reasons: dict[int, str]
    coupled: dict[int, str]
    size: int
    positions: dict[str, int] = field(default_factory=dict)
    flow: "flow.Flow | None" = field(default=None, repr=False)

    def unfit(self, keep: Tensor) -> tuple[Tensor, str] | None:
        """Run the graph on the channels kept: None where every operation still fits.

        Otherwise the units that the first unfit operation reads, and why it does not fit.
        `keep` is a bool tensor over units, shape (size,).
        """
        assert self.flow is not None
        return self.flow.replay(keep)

    def nodes(self, layer: str) -> list[fx.Node]:
        """The calls of a layer in the traced graph."""
        assert self.flow is not None
        return [n for n in self.flow.graph.nodes if n.op == "call_module" and n.target == layer]

    def maker_of(self, norm: str) -> str | None:
        """The convolution right in front of a norm layer, where nothing else reads it."""
        calls = self.nodes(norm)
        before = calls[0].all_input_nodes[0] if len(calls) == 1 else None
        if before is None or before.op != "call_module" or len(before.users) != 1:
            return None
        name = str(before.target)
        makes = name in self.layers and self.layers[name].inputs is not None
        return name if makes and len(self.nodes(name)) == 1 else None

    def norm_behind(self, layer: str) -> str | None:
        """The norm layer that alone reads the output of a layer that is called once."""
        calls = self.nodes(layer)
        users = list(calls[0].users) if len(calls) == 1 else []
        if len(users) == 1 and users[0].op == "call_module" and users[0].target in self.scaled:
            return str(users[0].target)
        return None

    def units_through(self, wanted: Callable[[fx.Node], bool]) -> Tensor:
        """Units that an operation for which `wanted` holds reads or makes."""
        assert self.flow is not None
        return self.flow.units_at([n for n in self.flow.graph.nodes if wanted(n)])


def trace(model: nn.Module, example_inputs: Any) -> ChannelGraph:
    """Trace the channel graph of `model` for one example batch.

    Raises:
        PruningError: `torch.fx` cannot trace the model, or the example does not fit it.
    """
    inputs = as_tuple(example_inputs)
    modes = {module: module.training for module in model.modules()}
    try:
        graph_module = symbolic_trace(model.eval())
        if _unreached(model, graph_module):  # auxiliary heads, which exist in training alone
            graph_module = _trace_in_training(model) or graph_module
        shapes = ShapeRecorder(graph_module).record(inputs)
        channel_flow = flow.Flow(graph_module, shapes)
        channel_flow.number(inputs)
    finally:
        for module, training in modes.items():
            module.training = training
    return _resolve(channel_flow)


def as_tuple(example_inputs: Any) -> tuple[Any, ...]:
    """The arguments of the forward pass: one tensor, or several."""
    if isinstance(example_inputs, list | tuple):
        return tuple(example_inputs)
    return (example_inputs,)


class LeafTracer(fx.Tracer):
    """Keeps every layer that the engine knows whole, subclasses defined elsewhere included."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether `m` is one operation of the graph."""
        return ops.is_known(m) or super().is_leaf_module(m, module_qualified_name)


def symbolic_trace(model: nn.Module) -> fx.GraphModule:
    """Trace `model` in its present mode; the graph module shares the model's layers."""
    try:
        return fx.GraphModule(model, LeafTracer().trace(model))
    except Exception as error:  # any exception the user's forward may raise on a proxy
        raise PruningError(
            f"torch.fx cannot trace {type(model).__name__}: {str(error).splitlines()[0]}"
        ) from error


def _trace_in_training(model: nn.Module) -> fx.GraphModule | None:
    """The graph of the training mode, where it can be traced."""
    try:
        return symbolic_trace(model.train())
    except PruningError:
        return None
    finally:
        model.eval()


class ShapeRecorder(fx.Interpreter):
    """Runs the network once and notes the shape of every result."""

    def record(self, inputs: tuple[Tensor, ...]) -> dict[fx.Node, Any]:
        """Shapes by node; tuples and dicts of tensors keep their structure."""
        self.shapes: dict[fx.Node, Any] = {}
        try:
            with torch.no_grad():
                self.run(*inputs)
        except RuntimeError as error:
            message = str(error).strip().splitlines()[0]
            raise PruningError(
                f"the network cannot run on the example inputs: {message}"
            ) from error
        return self.shapes

    def run_node(self, n: fx.Node) -> Any:
        """Run one operation and note the shape of its result."""
        result = super().run_node(n)
        self.shapes[n] = flow.map_tensors(result, lambda tensor: tensor.shape)
        return result


def _unreached(model: nn.Module, graph_module: fx.GraphModule) -> bool:
    """Whether some layer with parameters is not part of the traced graph."""
    called = tuple(str(node.target) for node in graph_module.graph.nodes if node.op != "output")
    owners = {name.rpartition(".")[0] for name, _ in model.named_parameters()}
    return any(owner and not _within(owner, called) for owner in owners)


def _within(owner: str, called: tuple[str, ...]) -> bool:
    return any(
        f"{owner}.".startswith(f"{name}.") or name.startswith(f"{owner}.") for name in called
    )


def _resolve(channel_flow: "flow.Flow") -> ChannelGraph:
    """Replace channel numbers by units, numbered from 1 in the order in which they appear."""
    roots = channel_flow.ties.roots()
    unit_of_root, compact = torch.unique(roots, return_inverse=True)  # root 0 stays unit 0
    channel_flow.unit_of = compact
    layers = {
        name: LayerChannels(
            None if record.inputs is None else compact[record.inputs.abs()],
            compact[record.outputs.abs()],
        )
        for name, record in channel_flow.layers.items()
    }
    return ChannelGraph(
        layers=layers,
        scaled=[name for name in channel_flow.scaled if name in layers],
        reasons={int(compact[number]): why for number, why in reversed(channel_flow.reasons)},
        coupled={int(compact[number]): why for number, why in reversed(channel_flow.coupled)},
        size=len(unit_of_root),
        positions=channel_flow.positions,
        flow=channel_flow,
    )
