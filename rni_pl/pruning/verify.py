"""The proof of a pruned network: it computes what the masked one does.

Numbers also tell of data that leaves torch on its way, through NumPy, for one.
"""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from rni_pl.errors import PruningError
from rni_pl.pruning.check import masked
from rni_pl.pruning.copying import Parts
from rni_pl.pruning.dependency import DependencyGraph
from rni_pl.pruning.run import Example, tensors_in
from rni_pl.pruning.surgery import Cut

CLOSE = 1e-4  # how far apart outputs may be, of the largest
CLOSE_IN_DOUBLE = 1e-9
# Operations that choose by values: the last digit may turn over what they choose.
CHOICES = {
    "sort", "topk", "argsort", "nms", "nonzero", "argmax", "argmin", "max", "min", "kthvalue",
    "unique", "_unique2", "searchsorted", "bucketize", "gt", "lt", "ge", "le", "eq", "ne", "floor",
    "ceil", "round", "_to_copy",
}  # fmt: skip


def compare(graph: DependencyGraph, cut: Cut, pruned: Parts, outputs: list[Tensor]) -> None:
    """Raise where the pruned network computes something else than the masked one.

    `outputs` are those of the pruned network on the example as its check gave them, none where it
    gave no values.
    """
    tensors = {**graph.parts.tensors, **masked(graph, cut)}
    apart = float("inf")
    with contextlib.suppress(Exception):  # what this copy has noted before may be in the way
        assert graph.twin is not None
        apart = _largest(_run(graph.twin, tensors, graph.example), outputs)
    double = all(x.dtype == torch.double for x in pruned.tensors.values() if x.is_floating_point())
    close = CLOSE_IN_DOUBLE if double else CLOSE
    pairs = ((graph.parts, tensors), (pruned, pruned.tensors))
    if not apart <= close:
        copies = [(parts.copy(given, passing=True), given) for parts, given in pairs]
        apart = _largest(*(_run(parts, given, graph.example) for parts, given in copies))
    if not (apart <= close or _equal_in_double(graph.example, pairs)):
        raise PruningError(
            "the pruned network would compute something else than the masked one on the example "
            f"(relative difference {apart:.1e}): data may leave torch somewhere in its code, or an "
            "operation do more than is known of it; verify=False returns it all the same"
        )


def _equal_in_double(example: Example, pairs: Sequence[tuple[Parts, Mapping[str, Tensor]]]) -> bool:
    """Whether two networks are the same in more digits, up to an operation that chooses."""
    logs = [_Log(), _Log()]
    outputs: list[list[Tensor]] = []
    with contextlib.suppress(Exception):  # whatever the network's code raises on float64
        for (parts, given), log in zip(pairs, logs, strict=True):
            given = {name: _double(tensor.detach()) for name, tensor in given.items()}
            copy = parts.copy(given, passing=True)
            outputs.append(_run(copy, given, example.map(_double), log))
        apart = _largest(*outputs)
        return apart <= CLOSE_IN_DOUBLE or _differ_by_choice(logs[0].results, logs[1].results)
    return False


class _Log(TorchDispatchMode):
    """Keeps what every operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.results: list[tuple[str, list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        name = func._schema.name.rpartition("::")[2].rstrip("_")
        self.results.append((name, [x.clone() for x in tensors_in(made)]))
        return made


def _run(
    parts: Parts, tensors: Mapping[str, Tensor], example: Example, under: Any = None
) -> list[Tensor]:
    """The outputs in evaluation mode, with these parameters and buffers, of which none changes."""
    filled = {}
    for name, tensor in tensors.items():
        data = tensor.detach()
        is_buffer = not isinstance(parts.tensors[name], nn.Parameter)
        filled[name] = data.clone() if is_buffer else nn.Parameter(data, False)
    parts.fill(filled)
    parts.train(False)
    example = example.map(lambda x: x.detach().clone())
    devices = {x.device for x in tensors_in((example.args, example.kwargs)) if x.is_cuda}
    with torch.no_grad(), torch.random.fork_rng(devices=devices), under or contextlib.nullcontext():
        torch.random.default_generator.manual_seed(0)
        return tensors_in(parts.network(*example.args, **example.kwargs))


def _largest(expected: list[Tensor], found: list[Tensor]) -> float:
    if [x.shape for x in expected] != [x.shape for x in found]:
        return float("inf")
    return max((_apart(e, f) for e, f in zip(expected, found, strict=True)), default=0.0)


def _differ_by_choice(
    expected: list[tuple[str, list[Tensor]]], found: list[tuple[str, list[Tensor]]]
) -> bool:
    """Whether all that is of the same size is the same, up to an operation that chooses."""
    for (name, one), (other_name, other) in zip(expected, found, strict=False):
        if name != other_name or len(one) != len(other):
            return False
        for e, f in zip(one, other, strict=True):
            if e.shape == f.shape and not _apart(e, f) <= CLOSE_IN_DOUBLE:
                return name in CHOICES
    return False


def _double(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


def _apart(expected: Tensor, found: Tensor) -> float:
    if not expected.numel():
        return 0.0
    if not expected.is_floating_point():
        return 0.0 if torch.equal(expected, found) else float("inf")
    both = expected.isfinite() & found.isfinite()
    if not torch.equal(expected.isfinite(), found.isfinite()):
        return float("inf")
    scale = expected[both].abs().max() if bool(both.any()) else expected.new_zeros(())
    apart = (expected[both] - found[both]).abs().max() if bool(both.any()) else scale
    return float(apart / scale) if scale > 0 else float(apart)
