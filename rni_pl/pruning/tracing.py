"""The graph of a network, with the shape of every result, from one pass over its code.

`torch.fx` calls the network's own code on stand-ins. Here each operation is also carried out, as it
is noted, on torch's meta device, where tensors have a shape and no content. So the code may ask
for sizes and decide by them; what it decided is noted in the graph, for `Flow.replay` to check.
"""

import inspect
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from rni_pl.errors import PruningError
from rni_pl.pruning import kinds
from rni_pl.pruning.meta import by_definition, on_meta, to_meta
from rni_pl.pruning.numbering import map_tensors, tensors_in
from rni_pl.pruning.reads import Mode, Reads, noted
from rni_pl.pruning.standins import StandIn, decision, number, passing_for_tensors

ALONE = threading.RLock()


@dataclass
class Traced:
    """A traced graph; `shapes` has the results by node, with shapes in place of tensors.

    `reads` is what the network's own code asked of its layers.
    """

    modules: dict[str, nn.Module]
    graph: fx.Graph
    shapes: dict[fx.Node, Any]
    reads: Reads

    @property
    def layers(self) -> set[str]:
        """Names of whatever the graph calls or reads."""
        return {str(n.target) for n in self.graph.nodes if n.op in ("call_module", "get_attr")}

    @property
    def parameters(self) -> set[fx.Node]:
        """Operations that give a parameter or buffer, or what is made of these alone."""
        found: set[fx.Node] = set()
        for node in self.graph.nodes:
            inputs = node.all_input_nodes
            if node.op == "get_attr" or (inputs and found.issuperset(inputs)):
                found.add(node)
        return found


def trace(model: nn.Module, inputs: tuple[Any, ...]) -> Traced:
    """Trace `model` in its present mode on example inputs; nothing of the model is changed.

    Meanwhile `isinstance`, some functions of torch and attributes of layers are others for the
    whole process: threads trace one after another, and had better not run networks beside it.

    Raises:
        PruningError: the code decides by values of activations, or the example does not fit it.
    """
    with ALONE:
        return _trace(model, inputs)


def _trace(model: nn.Module, inputs: tuple[Any, ...]) -> Traced:
    try:
        return Tracer(to_meta(inputs), meta=True).run(model)
    except Exception as error:  # whatever the code does on stand-ins, or cannot do on meta tensors
        if model.training:  # real tensors would change the running statistics
            raise PruningError(_cannot(model, error)) from error
    try:
        return Tracer(map_tensors(inputs, Tensor.clone), meta=False).run(model)
    except OperationError as error:
        raise PruningError(f"the network cannot run on the example inputs: {error}") from error
    except Exception as error:
        raise PruningError(_cannot(model, error)) from error


class OperationError(Exception):
    """An operation that cannot be carried out on the example."""


class Tracer(fx.Tracer):
    """Notes every operation and carries it out, on meta tensors or on real ones.

    Keeps every layer that the engine knows whole, subclasses defined elsewhere included.
    """

    def __init__(self, inputs: tuple[Any, ...], meta: bool) -> None:
        super().__init__()
        self.inputs, self.meta = inputs, meta
        self.results: dict[fx.Node, Any] = {}
        self._read: set[fx.Node] = set()  # numbers and flags read off what activations hold
        self._remaining = iter(inputs)
        self._notes = True
        self._drops = False  # the operation at hand is a dropout

    @torch.no_grad()
    def run(self, model: nn.Module) -> Traced:
        """Trace `model`; arguments beyond the inputs take their defaults."""
        parameters = list(inspect.signature(model.forward).parameters.values())
        optional = [p for p in parameters[len(self.inputs) :] if p.default is not p.empty]
        self._modules = dict(model.named_modules())
        self._names = {
            id(tensor): f"{name}.{key}".lstrip(".")
            for name, module in self._modules.items()
            for key, tensor in (*module._parameters.items(), *module._buffers.items())
        }
        with noted(self._modules, lambda: self._notes) as reads, passing_for_tensors():
            graph = self.trace(model, {p.name: p.default for p in optional})
        shapes = {n: map_tensors(value, lambda t: t.shape) for n, value in self.results.items()}
        return Traced(self._modules, graph, shapes, reads)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether `m` is one operation of the graph."""
        if isinstance(m, kinds.WITH_CHANNELS):
            with self._calculating():  # one with a forward pass of its own is tried out
                if kinds.is_known(m):
                    return True
        return super().is_leaf_module(m, module_qualified_name)

    def create_proxy(self, kind: str, target: Any, *rest: Any, **more: Any) -> fx.Proxy:
        """Note an operation; see `create_node`."""
        name = getattr(target, "__name__", "")
        self._drops = kind == "call_function" and name in kinds.DROPPING
        return super().create_proxy(kind, target, *rest, **more)

    def create_node(
        self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any
    ) -> fx.Node:
        """Note an operation, and carry it out."""
        node = super().create_node(kind, target, args, kwargs, *rest, **more)
        if kind != "output":
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), self.results.__getitem__)
            try:
                with self._calculating():
                    self.results[node] = self._carry_out(node, args, kwargs)
            except Exception as error:  # whatever the operation raises
                message = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise OperationError(message) from error
            if not tensors_in(self.results[node]) and self._reads(node, (args, kwargs)):
                self._read.add(node)
        return node

    @contextmanager
    def _calculating(self) -> Iterator[None]:
        """Let layers be called without a note."""
        self._notes = False
        try:
            yield
        finally:
            self._notes = True

    def _reads(self, node: fx.Node, values: Any) -> bool:
        """Whether a result depends on what activations hold, not on their sizes."""
        inspects = bool(tensors_in(values)) and kinds.name_of(node) not in kinds.QUERIES
        return inspects or bool(self._read & set(node._input_nodes))

    def _carry_out(self, node: fx.Node, args: tuple, kwargs: dict) -> Any:
        if node.op == "placeholder":
            return self._argument(str(node.target), *args)
        if node.op == "get_attr":
            owner, _, name = str(node.target).rpartition(".")
            value = getattr(self._modules[owner], name)
            return to_meta(value) if self.meta else value
        if self.meta and node.op != "call_module":
            known = by_definition(kinds.name_of(node), args, kwargs)
            if known is not None:
                return known
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        if node.op == "call_function":
            return node.target(*args, **kwargs)  # type: ignore[operator]
        layer = self._modules[str(node.target)]
        return on_meta(layer, args, kwargs) if self.meta else layer(*args, **kwargs)

    def _argument(self, name: str, *default: Any) -> Any:
        """The next example input, or what an argument that is left out is."""
        if name.startswith("**"):
            return {}
        if name.startswith("*"):
            return tuple(self._remaining)
        for value in self._remaining:
            return value
        if not default:
            raise TypeError(f"no example for the argument {name}")
        return default[0]

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """What stands for a result while the code runs."""
        return StandIn(node, self)

    # fx asks these when the network's code does more than call operations.

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """Note a layer, or look into it; what an operation calls inside is not noted.

        A module that is none of the network's (``self.features[:3]``) is looked into.
        """
        name = self.submodule_paths.get(m) if self._notes else None  # type: ignore[union-attr]
        if name is None:
            return forward(*args, **kwargs)
        if type(m) is nn.Identity and not kinds.has_hooks(m) and len(args) == 1 and not kwargs:
            return args[0]  # no operation
        if self.is_leaf_module(m, name):
            return self.create_proxy("call_module", name, args, kwargs)
        return super().call_module(m, forward, args, kwargs)

    def create_arg(self, a: Any) -> Any:
        """An argument as the graph holds it: the usual kinds here, faster, all others by fx."""
        if isinstance(a, fx.Proxy):
            return a.node
        if a is None or type(a) in (int, float, bool, str):
            return a
        if type(a) is Mode:
            return False if self._drops else bool(a)
        if type(a) in (tuple, list):
            return type(a)(map(self.create_arg, a))
        return super().create_arg(a) if a != {} else a

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict) -> Any:
        """A parameter or buffer that the code reads (fx itself would search all of them)."""
        name = self._names.get(id(attr_val)) if isinstance(attr_val, Tensor) else None
        if name is None or not self._notes:
            return attr_val
        if name not in parameter_proxy_cache:
            parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {})
        return parameter_proxy_cache[name]

    def to_bool(self, obj: fx.Proxy) -> bool:
        """A decision of the code, which has to be by sizes, not by what activations hold."""
        value = self.results[obj.node]
        if isinstance(value, Tensor) or obj.node in self._read:
            return super().to_bool(obj)
        self.create_node("call_function", decision, (obj.node, bool(value)), {})
        return bool(value)

    def to_number(self, obj: fx.Proxy, kind: type) -> Any:
        """A size that the code calculates with: ``range(height)``, ``float(channels)``."""
        value = self.results[obj.node]
        if isinstance(value, Tensor) or obj.node in self._read:
            raise fx.proxy.TraceError(f"{kind.__name__}() of what activations hold")
        self.create_node("call_function", number, (obj.node, kind(value)), {})
        return kind(value)

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """A loop over something of known length."""
        value = self.results[obj.node]
        if not isinstance(value, list | tuple | Tensor):
            return super().iter(obj)
        return iter([obj[i] for i in range(len(value))])  # type: ignore[index]


def _cannot(model: nn.Module, error: Exception) -> str:
    return f"torch.fx cannot trace {type(model).__name__}: {str(error).splitlines()[0]}"
