"""Finding the dependency groups of a network by running it.

The forward pass is run in evaluation mode, and in training mode where layers were not reached or
the network's code asks for the mode. Tensors have no content (torch's meta device) unless the
network decides by values.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from rni_pl.errors import PruningError
from rni_pl.pruning import layers, moves  # noqa: F401  # they register their rules
from rni_pl.pruning.channels import Channels
from rni_pl.pruning.copying import Parts
from rni_pl.pruning.dependency import DependencyGraph
from rni_pl.pruning.mode import asks_for_mode
from rni_pl.pruning.ops import layer_of
from rni_pl.pruning.propagate import Propagation
from rni_pl.pruning.run import Example, tensors_in, twin, without_content

CONTAINERS = nn.Sequential, nn.ModuleList, nn.ModuleDict


def trace(model: nn.Module, example: Any, by_rows: bool = False) -> DependencyGraph:
    """Find the dependency groups of `model` on an example, see `Example.of`.

    With `by_rows`, layers that make channels rank them; else norm layers, by their scales.

    Raises:
        PruningError: the network cannot be run on the example, or cannot be copied.
        TypeError: it is no network.
    """
    check_network(model)
    example = example if isinstance(example, Example) else Example.of(example)
    try:
        graph = _traced(model, example, by_rows, real=False)
        if graph.has_more and True not in graph.runs:  # perhaps training looks at values
            with contextlib.suppress(Exception):
                with_values = _traced(model, example, by_rows, real=True)
                return with_values if True in with_values.runs else graph
        return graph
    except PruningError:
        raise
    except Exception:  # the code looks at values, or does what needs them
        pass
    try:
        return _traced(model, example, by_rows, real=True)
    except PruningError:
        raise
    except Exception as error:  # whatever the network's code may raise
        message = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise PruningError(f"the network cannot run on the example inputs: {message}") from error


def check_network(model: nn.Module) -> None:
    """Raise where this is no network, or one that hides another."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a network, not {model!r:.80}")
    where = ""
    if hasattr(model, "_orig_mod"):
        where = "before torch.compile, or its _orig_mod"
    elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        where = "its .module"
    if where:
        raise PruningError(f"{type(model).__name__} wraps a network: prune that one ({where})")


def _traced(model: nn.Module, example: Example, by_rows: bool, real: bool) -> DependencyGraph:
    parts = Parts.of(model)
    graph = DependencyGraph(parts, example, Channels(by_rows), real=real)
    graph.twin = network = _labelled(graph)
    under = Propagation(graph.channels, not real, max(example.images, 1))
    under.forward(network, example)
    graph.runs[False] = under.ops
    unreached = _unreached(graph)
    graph.has_more = bool(unreached) or asks_for_mode(parts.modules.values())
    if graph.has_more:
        _watch_training(graph, network)
        unreached = _unreached(graph)
    _fix_shared(graph)
    if unreached:
        _fix_around(graph, _labelled(graph), unreached)
    graph.resolve()
    return graph


def _labelled(graph: DependencyGraph) -> Parts:
    """A copy of the network to run, whose parameters carry their labels."""

    def stand_in(name: str, x: Tensor) -> Tensor:
        return x.clone() if graph.real else without_content(x)

    return twin(graph.parts, stand_in, graph.channels.parameters)


def _watch_training(graph: DependencyGraph, network: Parts) -> None:
    """Run in training mode too, where the network can be: losses may want targets, for one."""
    doubled = graph.example.map(lambda x: torch.cat([x, x]) if x.ndim else x)  # BatchNorm wants two
    channels = graph.channels
    noted: tuple[list[Any], ...] = channels.fixed, channels.coupled, channels.union.pairs
    for example in (graph.example, doubled):
        before = [len(each) for each in noted]
        under = Propagation(graph.channels, not graph.real)
        with contextlib.suppress(Exception), torch.random.fork_rng(devices=[]):
            under.forward(network, example, training=True)
            graph.runs[True], graph.training_example = under.ops, example
            return
        for each, length in zip(noted, before, strict=True):
            del each[length:]


def _unreached(graph: DependencyGraph) -> list[str]:
    """Layers with parameters that no run has reached."""
    reached = {
        layer_of(label.name)
        for op in graph.all_ops()
        for label in op.inputs
        if label is not None and label.name
    }
    return [
        name for name, module in graph.parts.modules.items()
        if any(p is not None for p in module._parameters.values())
        and name not in reached and layer_of(f"{name}.") not in reached
    ]  # fmt: skip


def _fix_shared(graph: DependencyGraph) -> None:
    """Fix the channels of parameters and buffers that are views of the same memory."""
    owner: dict[int, str] = {}
    for name, tensor in graph.parts.tensors.items():
        if not tensor.numel() or tensor.is_meta:
            continue
        first = owner.setdefault(tensor.untyped_storage().data_ptr(), name)
        if first == name:
            continue
        for each in (first, name):
            if each in graph.channels.parameters:
                why = f"is held by {layer_of(each)}, whose parameters share memory with others"
                ids = graph.channels.parameters[each].ids().unique()
                graph.channels.fixed.append((ids[ids > 0], why))


def _fix_around(graph: DependencyGraph, network: Parts, unreached: list[str]) -> None:
    """Fix what layers that no run reached might read.

    That is whatever the module that holds them is given, and is handed by its other children, if it
    has as many channels as one of their weights.
    """
    holders: dict[str, str] = {}
    widths: dict[str, set[int]] = {}
    for name in unreached:
        reads = [p.shape for p in network.modules[name].parameters() if p.ndim]
        while (parent := name.rpartition(".")[0]) and not _has_run(graph, parent):
            name = parent
        while parent and isinstance(network.modules[parent], CONTAINERS):
            parent = parent.rpartition(".")[0]
        holders.setdefault(parent, name)
        groups = getattr(network.modules[name], "groups", 1)
        widths.setdefault(parent, set()).update(
            size * times for shape in reads for size in shape[:2][-1:] + shape[:1]
            for times in (1, groups)
        )  # fmt: skip
    under = Propagation(graph.channels, not graph.real)
    for parent, name in holders.items():
        why = f"might be read by {name}, which the example does not reach"
        hold = functools.partial(_hold_all, under, why, widths[parent])
        network.modules[parent].register_forward_pre_hook(
            lambda _, args, kwargs, hold=hold: hold((args, kwargs)), with_kwargs=True
        )
        for child in _children(network.modules[parent]):
            child.register_forward_hook(lambda *given, hold=hold: hold(given[-1]))
    under.forward(network, graph.example)
    for parent in holders:
        for module in (network.modules[parent], *_children(network.modules[parent])):
            module._forward_hooks.clear()
            module._forward_pre_hooks.clear()


def _has_run(graph: DependencyGraph, module: str) -> bool:
    return any(op.layer.startswith(f"{module}.") for op in graph.all_ops())


def _children(module: nn.Module) -> Iterator[nn.Module]:
    """The modules that a module's own code calls, those in lists among them."""
    for child in module.children():
        yield child
        if isinstance(child, CONTAINERS):
            yield from _children(child)


def _hold_all(under: Propagation, why: str, widths: set[int], given: Any) -> None:
    under.pin_all([x for x in tensors_in(given) if widths.intersection(x.shape)], why)
