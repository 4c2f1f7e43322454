"""Parameters and multiply-accumulates as functions of the dependency groups that are kept."""

import math

import torch
from torch import Tensor, nn

from rni_pl.pruning.dependency import DependencyGraph
from rni_pl.pruning.ids import NO_IDS


class Costs:
    """Parameters and multiply-accumulates as functions of the groups that are kept.

    Covers whatever has weights for channels; the rest of a network (products of activations in
    attention, for one) does not change with the channels and is left out. All is counted at once.
    """

    def __init__(self, graph: DependencyGraph) -> None:
        tensors, channels = graph.parts.tensors, graph.channels
        held = [
            (name, axes) for name, axes in graph.parameters()
            if isinstance(tensors[name], nn.Parameter) and (axes or name in channels.beside)
        ]  # fmt: skip
        self._axes = {id(groups): groups for _, axes in held for groups in axes.values()}
        self._held: list[tuple[int, int, list[int]]] = []  # other sizes, MACs each, its axes
        self._beside: dict[int, list[Tensor]] = {}
        for i, (name, axes) in enumerate(held):
            rest = math.prod(n for d, n in enumerate(tensors[name].shape) if d not in axes)
            costs = channels.costs.get(name, 0)
            self._held.append((rest, costs, [id(groups) for groups in axes.values()]))
            for axis in channels.beside.get(name, ()):
                groups = None if axis.ids is None else graph.group_of[axis.ids]
                if groups is not None and not any(
                    torch.equal(groups, own) for own in axes.values()
                ):
                    self._beside.setdefault(i, []).append(groups)
        self._flat = torch.cat([NO_IDS, *self._axes.values()])
        lengths = torch.tensor([len(groups) for groups in self._axes.values()], device="cpu")
        self._axis = torch.arange(len(lengths), device="cpu").repeat_interleave(lengths)

    def params(self, keep: Tensor) -> int:
        """Parameters with the groups that `keep` (bool, shape (groups,)) marks."""
        kept = self._kept(keep)
        return sum(rest * math.prod(kept[a] for a in axes) for rest, _, axes in self._held)

    def macs(self, keep: Tensor) -> int:
        """Multiply-accumulates of one image with the groups that `keep` marks."""
        kept, total = self._kept(keep), 0
        for i, (rest, each, axes) in enumerate(self._held):
            for groups in self._beside.get(i, ()):
                each = each * int(keep[groups].sum()) // len(groups)
            total += each * rest * math.prod(kept[a] for a in axes)
        return total

    def _kept(self, keep: Tensor) -> dict[int, int]:
        """What is kept along every axis."""
        counts = torch.zeros(len(self._axes), dtype=torch.long, device="cpu")
        counts.index_add_(0, self._axis, keep[self._flat].long())
        return dict(zip(self._axes, counts.tolist(), strict=True))
