"""Two proofs of a plan: the pruned network does what it did, and computes what the masked one does.

The first is a run of what is left with the ids that it keeps; the second compares numbers, which
also finds data that leaves torch on its way (through NumPy, for one).
"""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from rni_pl.copying import Parts
from rni_pl.errors import PruningError
from rni_pl.pruning.dependency import DependencyGraph
from rni_pl.pruning.ids import NO_IDS, Axis, Label
from rni_pl.pruning.surgery import Cut
from rni_pl.pruning.watch import Example, tensors_in, twin

CLOSE = 1e-4  # how far apart outputs may be, of the largest
CLOSE_IN_DOUBLE = 1e-9
# Operations that choose by values: the last digit may turn over what they choose.
CHOICES = {
    "sort", "topk", "argsort", "nms", "nonzero", "argmax", "argmin", "max", "min", "kthvalue",
    "unique", "_unique2", "searchsorted", "bucketize", "gt", "lt", "ge", "le", "eq", "ne", "floor",
    "ceil", "round", "_to_copy",
}  # fmt: skip


def fitting(graph: DependencyGraph, keep: Tensor, cut: Cut) -> Parts | None:
    """Run the network that is left, its parameters labelled with the ids that they keep.

    `keep` says which dependency groups stay, bool, shape (groups,). The copy that was run; None
    where something does not fit, and the graph has more fixed channels then.
    """
    labels, tensors = {}, {}
    left: dict[int, tuple[Tensor, Tensor]] = {}  # what is kept of a vector of ids
    known = graph.parts.tensors
    for name, label in graph.channels.parameters.items():
        masks, axes = cut.left.get(name, {}), {}
        for d, axis in label.axes.items():
            ids = axis.ids
            if ids is not None and id(ids) not in left:
                left[id(ids)] = ids, ids[masks[d]] if d in masks else ids
            axes[d] = Axis(None if ids is None else left[id(ids)][1])
        labels[name] = Label(axes, name=name, silent_at=label.silent_at, source=name)
        if masks and graph.real:
            tensors[name] = cut.slice(name, known[name].detach())
        elif masks:
            shape = [int(masks[d].sum()) if d in masks else n
                     for d, n in enumerate(known[name].shape)]  # fmt: skip
            tensors[name] = torch.empty(shape, dtype=known[name].dtype, device="meta")
    smaller = cut.resize(twin(graph.parts, labels, graph.real, tensors))
    masked = None
    if graph.real:
        masked = twin(graph.parts, graph.channels.parameters, True, _masked(graph, keep))
    return smaller if graph.fits(smaller, keep[graph.group_of], left, masked) else None


def _masked(graph: DependencyGraph, keep: Tensor) -> dict[str, Tensor]:
    """The parameters of the network in which removed channels are 0, as far as they differ.

    The scales of removed channels and the affine parameters that follow are at 0; where a channel
    is a constant then, so are the weights that read it.
    """
    kept = keep[graph.group_of]
    constant = torch.cat([NO_IDS, *graph.channels.constants])
    folded = torch.zeros(len(kept), dtype=torch.bool, device="cpu")
    folded[constant] = True
    weights = {name for name, _ in graph.channels.columns}
    masked: dict[str, Tensor] = {}
    for name, parameter in graph.parts.tensors.items():
        if not isinstance(parameter, nn.Parameter):
            continue
        label = graph.channels.parameters.get(name)
        for dim, axis in label.axes.items() if label else ():
            if axis.ids is None:
                continue
            gone = ~kept[axis.ids]
            if name in weights:
                gone &= folded[axis.ids] & ((name, dim) in graph.channels.columns)
            if bool(gone.any()):
                silent = label.silent_at or 0.0  # type: ignore[union-attr]
                index = gone.nonzero().flatten().to(parameter.device)
                masked[name] = masked.get(name, parameter.detach()).index_fill(dim, index, silent)
    return masked


def verify_numbers(graph: DependencyGraph, keep: Tensor, pruned: Parts, smaller: Parts) -> None:
    """Raise where the pruned network computes something else than the masked one.

    `keep` says which dependency groups were kept, bool, shape (groups,); `smaller` is a copy of the
    pruned network, which was run.
    """
    tensors = {**graph.parts.tensors, **_masked(graph, keep)}
    try:  # on copies that there are; what they have noted of tensors without content is in the way
        assert graph.twin is not None
        pairs = ((graph.twin, tensors), (smaller, pruned.tensors))
        apart = _largest(*(_run(parts, given, graph.example) for parts, given in pairs))
    except Exception:
        apart = float("inf")
    pairs = ((graph.parts, tensors), (pruned, pruned.tensors))
    double = all(x.dtype == torch.double for x in pruned.tensors.values() if x.is_floating_point())
    close = CLOSE_IN_DOUBLE if double else CLOSE
    if not apart <= close:
        copies = [(parts.copy(given, passing=True), given) for parts, given in pairs]
        apart = _largest(*(_run(parts, given, graph.example) for parts, given in copies))
    if apart <= close:
        return
    logs, choice = [_Log(), _Log()], False
    try:  # in more digits
        doubled = graph.example.map(_double)
        outputs = []
        for (parts, given), log in zip(pairs, logs, strict=True):
            given = {name: _double(tensor.detach()) for name, tensor in given.items()}
            outputs.append(_run(parts.copy(given, passing=True), given, doubled, log))
        apart = _largest(*outputs)
        choice = _differ_by_choice(logs[0].results, logs[1].results)
    except Exception:  # whatever the network's code raises on float64
        choice = False
    if not (apart <= CLOSE_IN_DOUBLE or choice):
        raise PruningError(
            "the pruned network would compute something else than the masked one on the example "
            f"(relative difference {apart:.1e}): data may leave torch somewhere in its code, or an "
            "operation do more than is known of it; verify=False returns it all the same"
        )


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
    with torch.no_grad(), torch.random.fork_rng(devices=devices), under or nullcontext():
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
