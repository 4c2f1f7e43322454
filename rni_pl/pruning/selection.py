"""Which units to keep: thresholds on their scores, globally or layer by layer."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rni_pl.errors import PruningError
from rni_pl.pruning.scores import Candidates

SCOPES = ("global", "local")


@dataclass(frozen=True)
class Floor:
    """What every layer keeps whatever its scores: `min_channels` channels, in multiples of
    `round_to` (rounded up; a layer never grows).
    """

    min_channels: int = 3
    round_to: int = 1

    def units(self, wanted: int, group: "Group") -> int:
        """Number of units to keep in a group, where `wanted` are above the threshold."""
        step = math.lcm(*(self.round_to // math.gcd(self.round_to, w) for w in group.widths))
        least = max(wanted, math.ceil(self.min_channels / min(group.widths)))
        return min(math.ceil(least / step) * step, len(group.places))


@dataclass(frozen=True)
class Group:
    """The candidates of one layer, or of layers that are pruned alike, by falling score.

    `places` are indices into the candidates; `widths` says how many channels one of them has in
    each of the layers.
    """

    places: Tensor
    widths: tuple[int, ...]


def groups_of(candidates: Candidates) -> list[Group]:
    """The candidates, layer by layer."""
    groups = []
    for index, widths in enumerate(candidates.widths):
        places = (candidates.group == index).nonzero().flatten()
        order = candidates.scores[places].argsort(descending=True, stable=True)
        groups.append(Group(places[order], widths))
    return groups


def thresholds(
    candidates: Candidates, groups: list[Group], ratio: float, scope: str
) -> list[float]:
    """``quantile(scores, ratio)``, one for each group: the same, or each group's own."""
    if scope == "global":
        return [quantile(candidates.scores, candidates.channels, ratio)] * len(groups)
    own = ((candidates.scores[g.places], candidates.channels[g.places]) for g in groups)
    return [quantile(scores, channels, ratio) for scores, channels in own]


def keep_above(
    candidates: Candidates, groups: list[Group], limits: list[float], floor: Floor
) -> Tensor:
    """Mask of the candidates that score above their group's limit, shape (K,).

    A group that would keep less than `floor` asks for keeps its highest-scored.
    """
    keep = torch.zeros(len(candidates.units), dtype=torch.bool)
    for group, limit in zip(groups, limits, strict=True):
        above = int((candidates.scores[group.places] > limit).sum())
        keep[group.places[: floor.units(above, group)]] = True
    return keep


def quantile(scores: Tensor, channels: Tensor, ratio: float) -> float:
    """The `ratio` quantile of unit scores (linear interpolation), each counted once per channel."""
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
