"""Which units to keep: quantile thresholds, globally or layer by layer."""

import torch
from torch import Tensor

from rni_pl.errors import PruningError
from rni_pl.pruning.scores import Candidates

SCOPES = ("global", "local")


def check(ratio: float, scope: str) -> None:
    """Raise `PruningError` unless `ratio` is in [0, 1) and `scope` is known."""
    if not isinstance(ratio, int | float) or isinstance(ratio, bool) or not 0 <= ratio < 1:
        raise PruningError(f"prune.ratio={ratio!r} is out of range; allowed: 0 <= ratio < 1")
    if scope not in SCOPES:
        raise PruningError(f"prune.scope={scope!r} is unknown; allowed: {', '.join(SCOPES)}")


def select(candidates: Candidates, ratio: float, scope: str, min_channels: int = 3) -> Tensor:
    """Mask of the candidates to keep, shape (K,).

    Keeps what scores above ``quantile(scores, ratio)`` (linear interpolation, every channel
    counted), over all layers or layer by layer; a layer of which fewer than `min_channels` would
    remain keeps its `min_channels` highest-scored. Ratio 0 removes nothing.

    Raises:
        PruningError: the ratio leaves fewer channels than there are layers.
    """
    if ratio == 0 or not len(candidates.units):
        return torch.ones(len(candidates.units), dtype=torch.bool)
    _check_enough_left(candidates, ratio)
    everything = quantile(candidates.scores, candidates.channels, ratio)
    keep = torch.zeros(len(candidates.units), dtype=torch.bool)
    for group in range(len(candidates.layers)):
        places = (candidates.group == group).nonzero().flatten()
        scores = candidates.scores[places]
        threshold = everything
        if scope == "local":
            threshold = quantile(scores, candidates.channels[places], ratio)
        kept = scores > threshold
        if int(kept.sum()) < min_channels:
            kept[scores.argsort(descending=True, stable=True)[:min_channels]] = True
        keep[places] = kept
    return keep


def quantile(scores: Tensor, channels: Tensor, ratio: float) -> float:
    """The `ratio` quantile of unit scores, each counted once per channel."""
    return float(torch.quantile(scores.repeat_interleave(channels), ratio))


def _check_enough_left(candidates: Candidates, ratio: float) -> None:
    total, layers = int(candidates.channels.sum()), len(candidates.layers)
    left = (1 - ratio) * total
    if left < layers:
        raise PruningError(
            f"prune.ratio={ratio} leaves too little: {left:.1f} of {total} channels for {layers} "
            f"layers; allowed here: ratio <= {1 - layers / total:.4f}"
        )
