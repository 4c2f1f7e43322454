"""Selection: from the importance of dependency groups to a mask of those that are kept."""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rni_pl.errors import PruningError
from rni_pl.pruning.dependency import DependencyGraph
from rni_pl.pruning.importance import Importance

SCOPES = ("global", "local")
TARGETS = ("channels", "params", "macs")
TOLERANCE = 0.01  # how far over its budget a cut may be, as a share of the network


@dataclass(frozen=True)
class Floor:
    """What every layer keeps whatever its scores: `min_channels` channels and all but the share
    `max_ratio`, in multiples of `round_to` (rounded up; a layer never grows).
    """

    min_channels: int = 3
    round_to: int = 1
    max_ratio: float = 1.0

    def groups(self, wanted: int, widths: tuple[int, ...], count: int) -> int:
        """Number of groups to keep of `count`, where `wanted` are above the threshold.

        `widths` says how many channels one of them has in each of its layers.
        """
        step = math.lcm(*(self.round_to // math.gcd(self.round_to, w) for w in widths))
        share = math.ceil((1 - self.max_ratio) * count - 1e-9)
        least = max(wanted, share, math.ceil(self.min_channels / min(widths)))
        return min(math.ceil(least / step) * step, count)


@dataclass
class Candidates:
    """Dependency groups that may be removed, K of them, in the order of the network.

    Attributes:
        groups: their numbers, shape (K,).
        scores: the importance of each, float64, shape (K,): the mean over its ranked channels.
        channels: ranked channels in each, shape (K,).
        layer_set: which set of ranked layers each belongs to, shape (K,). In a plain network a set
            is one layer; layers that residual additions tie are one set.
        widths: of each set: how many channels one group has in each of its layers.
    """

    groups: Tensor
    scores: Tensor
    channels: Tensor
    layer_set: Tensor
    widths: list[tuple[int, ...]]

    @classmethod
    def of(cls, graph: DependencyGraph, removable: Tensor, importance: Importance) -> "Candidates":
        """The groups with ranked channels that are `removable`, bool, shape (graph.size,)."""
        held = [graph.layers[name].outputs for name in graph.ranked]
        if not held:
            none = torch.zeros(0, dtype=torch.long, device="cpu")
            return cls(none, none.double(), none, none, [])
        flat, scores = torch.cat(held), channel_scores(graph, importance)
        total = scores.new_zeros(graph.size).index_add_(0, flat, scores)
        channels = flat.bincount(minlength=graph.size)
        groups = (removable & (channels > 0)).nonzero().flatten()
        layer_set, widths = _layer_sets(flat, [len(each) for each in held], groups)
        return cls(groups, total[groups] / channels[groups], channels[groups], layer_set, widths)

    @functools.cached_property
    def by_set(self) -> list[Tensor]:
        """Places of the candidates of each set, by falling score."""
        order = self.scores.argsort(descending=True, stable=True)
        order = order[self.layer_set[order].argsort(stable=True)]
        return list(order.split(self.layer_set.bincount(minlength=len(self.widths)).tolist()))

    def quantile(self, ratio: float, places: Tensor | None = None) -> float:
        """The `ratio` quantile of scores, each counted once per channel, linearly interpolated."""
        scores, channels = self.scores, self.channels
        if places is not None:
            scores, channels = scores[places], channels[places]
        return float(torch.quantile(scores.repeat_interleave(channels), ratio))

    def thresholds(
        self, ratio: float, scope: str, ratios: Mapping[int, float] | None = None
    ) -> Tensor:
        """``quantile(scores, ratio)`` for each set, the same or its own; float64.

        Sets in `ratios` have a ratio and a threshold of their own, whatever the scope.
        """
        own = ratios or {}
        rest = torch.tensor([n not in own for n in range(len(self.widths))], device="cpu")
        places = rest[self.layer_set].nonzero().flatten() if own else None
        shared = None
        if scope == "global" and bool(rest.any()):
            shared = self.limit(ratio, places)
        found = [
            shared if shared is not None and number not in own
            else self.limit(own.get(number, ratio), each)
            for number, each in enumerate(self.by_set)
        ]  # fmt: skip
        return torch.tensor(found, dtype=torch.double, device="cpu")

    def limit(self, ratio: float, places: Tensor | None = None) -> float:
        """The score up to which channels go; a ratio of 0 removes none."""
        return self.quantile(ratio, places) if ratio else -math.inf

    def above(self, limits: Tensor) -> Tensor:
        """Mask of the candidates that score above their set's limit, shape (K,)."""
        return self.scores > limits[self.layer_set]

    def keep_above(self, limits: Tensor, floor: Floor) -> Tensor:
        """Mask of the candidates to keep, shape (K,).

        A layer that would keep less than `floor` asks for keeps its highest-scored.
        """
        keep = torch.zeros(len(self.groups), dtype=torch.bool, device="cpu")
        wanted = self.layer_set[self.above(limits)].bincount(minlength=len(self.widths)).tolist()
        for above, widths, places in zip(wanted, self.widths, self.by_set, strict=True):
            keep[places[: floor.groups(above, widths, len(places))]] = True
        return keep

    def check_enough_left(self, ratio: float) -> None:
        """Raise `PruningError` where `ratio` leaves fewer channels than sets of layers."""
        total, layers = int(self.channels.sum()), len(self.widths)
        left = (1 - ratio) * total
        if left < layers:
            raise PruningError(
                f"prune.ratio={ratio} leaves too little: {left:.1f} of {total} channels for "
                f"{layers} layers; allowed here: ratio <= {1 - layers / total:.4f}"
            )


def channel_scores(graph: DependencyGraph, importance: Importance) -> Tensor:
    """The score of every channel of the ranked layers, see `rni_pl.pruning.importance`.

    Layer after layer, shape (channels,), float64, on the CPU.

    Raises:
        PruningError: one is NaN or infinite, or they are not as many as a layer has channels.
    """
    found = []
    for name in graph.ranked:
        scores = importance.scores(name, graph.parts.modules[name]).detach().cpu().double()
        if scores.shape != graph.layers[name].outputs.shape:
            raise PruningError(
                f"the importance gives {name} scores of shape {tuple(scores.shape)}, for "
                f"{len(graph.layers[name].outputs)} channels"
            )
        if not bool(scores.isfinite().all()):
            raise PruningError(f"the scores of {name} are not finite: the network has diverged")
        if not importance.of_scales and bool(scores.any()):
            scores = scores / scores.mean()
        found.append(scores)
    return torch.cat(found)


def _layer_sets(
    held: Tensor, lengths: list[int], groups: Tensor
) -> tuple[Tensor, list[tuple[int, ...]]]:
    """The set of layers that each of `groups` is in, and the widths of one group there.

    `held` are the groups of all layers' channels, one layer after the other.
    """
    count = len(lengths)
    layer = torch.arange(count, device="cpu").repeat_interleave(torch.tensor(lengths, device="cpu"))
    pairs, widths = (held * count + layer).unique(return_counts=True)
    mark = torch.randint(2**62, (count,), generator=torch.Generator().manual_seed(0), device="cpu")
    sums = torch.zeros(int(held.max()) + 1, dtype=torch.long, device="cpu")
    sums.index_add_(0, pairs // count, mark[pairs % count])  # sums of other sets are others
    _, layer_set = sums[groups].unique(return_inverse=True)
    last = torch.zeros(
        int(layer_set.max()) + 1 if len(groups) else 0, dtype=torch.long, device="cpu"
    )
    last[layer_set] = groups  # one group of each set stands for all
    ends = torch.searchsorted(pairs, torch.stack([last, last + 1]) * count)
    return layer_set, [
        tuple(widths[start:end].tolist()) for start, end in zip(*ends.tolist(), strict=True)
    ]


def cut_to_budget(
    cut: Callable[[float], Tensor], removed: Callable[[Tensor], float], share: float, steps: int
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
