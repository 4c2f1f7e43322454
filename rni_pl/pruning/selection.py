"""Which dependency groups to keep: by thresholds on their scores, or within a budget."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rni_pl.errors import PruningError
from rni_pl.pruning.dependency import DependencyGraph
from rni_pl.pruning.importance import Candidates

SCOPES = ("global", "local")
TARGETS = ("channels", "params", "macs")
TOLERANCE = 0.01  # how far over its budget a cut may be, as a share of the network

# The share of the cost that a mask of kept groups removes.
Removed = Callable[[Tensor], float]


@dataclass(frozen=True)
class Floor:
    """What every layer keeps whatever its scores: `min_channels` channels, in multiples of
    `round_to` (rounded up; a layer never grows).
    """

    min_channels: int = 3
    round_to: int = 1

    def groups(self, wanted: int, ranked: "Ranked") -> int:
        """Number of groups to keep, where `wanted` are above the threshold."""
        step = math.lcm(*(self.round_to // math.gcd(self.round_to, w) for w in ranked.widths))
        least = max(wanted, math.ceil(self.min_channels / min(ranked.widths)))
        return min(math.ceil(least / step) * step, len(ranked.places))


@dataclass(frozen=True)
class Ranked:
    """The candidates of one layer, or of a set of layers that are pruned alike, by falling score.

    `places` are indices into the candidates; `widths` says how many channels one of them has in
    each of the layers.
    """

    places: Tensor
    widths: tuple[int, ...]


def ranked(candidates: Candidates) -> list[Ranked]:
    """The candidates, layer by layer."""
    found = []
    for index, widths in enumerate(candidates.widths):
        places = (candidates.layer_set == index).nonzero().flatten()
        order = candidates.scores[places].argsort(descending=True, stable=True)
        found.append(Ranked(places[order], widths))
    return found


def thresholds(
    candidates: Candidates, layers: list[Ranked], ratio: float, scope: str
) -> list[float]:
    """``quantile(scores, ratio)``, one for each layer: the same, or each layer's own."""
    if scope == "global":
        return [quantile(candidates.scores, candidates.channels, ratio)] * len(layers)
    own = ((candidates.scores[each.places], candidates.channels[each.places]) for each in layers)
    return [quantile(scores, channels, ratio) for scores, channels in own]


def keep_above(
    candidates: Candidates, layers: list[Ranked], limits: list[float], floor: Floor
) -> Tensor:
    """Mask of the candidates that score above their layer's limit, shape (K,).

    A layer that would keep less than `floor` asks for keeps its highest-scored.
    """
    keep = torch.zeros(len(candidates.groups), dtype=torch.bool, device="cpu")
    for each, limit in zip(layers, limits, strict=True):
        above = int((candidates.scores[each.places] > limit).sum())
        keep[each.places[: floor.groups(above, each)]] = True
    return keep


def quantile(scores: Tensor, channels: Tensor, ratio: float) -> float:
    """The `ratio` quantile of scores (linear interpolation), each counted once per channel."""
    return float(torch.quantile(scores.repeat_interleave(channels), ratio))


def check_enough_left(candidates: Candidates, ratio: float) -> None:
    """Raise `PruningError` where `ratio` leaves fewer channels than layers or coupled sets."""
    total, layers = int(candidates.channels.sum()), len(candidates.layers)
    left = (1 - ratio) * total
    if left < layers:
        raise PruningError(
            f"prune.ratio={ratio} leaves too little: {left:.1f} of {total} channels for {layers} "
            f"layers; allowed here: ratio <= {1 - layers / total:.4f}"
        )


def cut_to_budget(
    cut: Callable[[float], Tensor], removed: Removed, share: float, steps: int
) -> Tensor:
    """The mask of `cut` that removes the share nearest to `share`, and over it by 1 % at most.

    Args:
        cut: gives the mask for a ratio in [0, 1]; a higher ratio never keeps more.
        removed: the share of the cost that a mask removes.
        share: what to remove, in [0, 1).
        steps: ratios are tried in multiples of 1 / steps, by bisection.
    """
    low, high = 0, steps
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if removed(cut(middle / steps)) <= share else (low, middle)
    below, above = cut(low / steps), cut(high / steps)
    over, under = removed(above) - share, share - removed(below)
    return above if over <= min(TOLERANCE, max(under, 0)) else below


class Costs:
    """Parameters and multiply-accumulates as functions of the groups that are kept.

    Covers whatever has weights for channels; the rest of a network (products of activations in
    attention, for one) does not change with the channels and is left out. All is counted at once.
    """

    def __init__(self, graph: DependencyGraph) -> None:
        tensors = graph.parts.tensors
        held = [
            (name, axes) for name, axes in graph.parameters()
            if isinstance(tensors[name], nn.Parameter)
            and (axes or name in graph.channels.beside)
        ]  # fmt: skip
        flat = [groups for _, axes in held for groups in axes.values()]
        lengths = torch.tensor([len(groups) for groups in flat], device="cpu")
        self._groups = torch.cat(flat) if flat else torch.zeros(0, dtype=torch.long, device="cpu")
        self._axis = torch.arange(len(flat), device="cpu").repeat_interleave(lengths)
        self._owner = torch.tensor(
            [i for i, (_, axes) in enumerate(held) for _ in axes], device="cpu"
        )
        rest = [
            math.prod(n for d, n in enumerate(tensors[name].shape) if d not in axes)
            for name, axes in held
        ]
        self._rest = torch.tensor(rest, dtype=torch.long, device="cpu")
        each = [graph.channels.costs.get(name, 0) for name, _ in held]
        self._each = torch.tensor(each, dtype=torch.long, device="cpu")
        self._beside = [
            (i, graph.group_of[axis.ids])
            for i, (name, axes) in enumerate(held)
            for axis in graph.channels.beside.get(name, ())
            if axis.ids is not None and not _reads(axes, graph.group_of[axis.ids])
        ]

    def params(self, keep: Tensor) -> int:
        """Parameters with the groups that `keep` (bool, shape (groups,)) marks."""
        return int(self._sizes(keep).sum())

    def macs(self, keep: Tensor) -> int:
        """Multiply-accumulates of one image with the groups that `keep` marks."""
        each = self._each
        for i, groups in self._beside:
            each = each.clone()
            each[i] = each[i] * int(keep[groups].sum()) // len(groups)
        return int((self._sizes(keep) * each).sum())

    def _sizes(self, keep: Tensor) -> Tensor:
        """The number of elements of each parameter."""
        kept = torch.zeros(len(self._owner), dtype=torch.long, device="cpu")
        kept.index_add_(0, self._axis, keep[self._groups].long())
        return self._rest.scatter_reduce(0, self._owner, kept, "prod")


def _reads(axes: dict[int, Tensor], groups: Tensor) -> bool:
    """Whether channels are among those along a dimension of a parameter."""
    return any(len(own) == len(groups) and torch.equal(own, groups) for own in axes.values())
