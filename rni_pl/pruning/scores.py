"""Importance of channels, and of the units that can be removed."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rni_pl import norm
from rni_pl.errors import PruningError
from rni_pl.pruning.graph import ChannelGraph


@dataclass
class Candidates:
    """Units that may be removed, K of them, in the order of the network.

    Attributes:
        units: unit numbers, shape (K,).
        scores: importance of each unit, float64, shape (K,).
        channels: scaled channels in each unit, shape (K,).
        group: index of the set of norm layers that a unit belongs to, shape (K,). In a plain
            network a group is one layer.
        layers: the norm layers of each group.
        widths: the channels that a unit of each group has in each of these layers.
    """

    units: Tensor
    scores: Tensor
    channels: Tensor
    group: Tensor
    layers: list[tuple[str, ...]]
    widths: list[tuple[int, ...]]


def channel_scores(model: nn.Module, names: list[str]) -> dict[str, Tensor]:
    """Importance of every channel of the named norm layers: the size of its effective scale.

    ``sigmoid(gamma)`` for SigBN (arXiv 2204.06404), ``abs(gamma)`` for BatchNorm. Each of shape
    (C,), float64, on the CPU.

    Raises:
        PruningError: a scale is NaN or infinite.
    """
    scores = {
        name: norm.scale(model.get_submodule(name)).detach().abs().double().cpu()  # type: ignore[arg-type]
        for name in names
    }
    if scores and not bool(torch.isfinite(torch.cat(list(scores.values()))).all()):
        name = next(name for name, values in scores.items() if not torch.isfinite(values).all())
        raise PruningError(f"the scales of {name} are not finite: the network has diverged")
    return scores


def candidates(graph: ChannelGraph, scores: dict[str, Tensor], removable: Tensor) -> Candidates:
    """The removable units with their scores: the mean over a unit's scaled channels.

    `removable` is a bool tensor over units, shape (graph.size,).
    """
    total = torch.zeros(graph.size, dtype=torch.float64)
    channels = torch.zeros(graph.size, dtype=torch.long)
    group = torch.zeros(graph.size, dtype=torch.long)
    layers: list[tuple[str, ...]] = [()]  # of each group that was met on the way
    widths: list[tuple[int, ...]] = [()]
    if scores:
        units = torch.cat([graph.layers[name].outputs for name in scores])
        total.index_add_(0, units, torch.cat(list(scores.values())))
        channels.index_add_(0, units, torch.ones_like(units))
    for name in scores:
        units = graph.layers[name].outputs
        before, place = group[units].unique(return_inverse=True)
        group[units] = len(layers) + place
        layers += [(*layers[g], name) for g in before.tolist()]
        here = place.bincount() // group[units.unique()].unique(return_counts=True)[1]
        widths += [(*widths[g], w) for g, w in zip(before.tolist(), here.tolist(), strict=True)]
    units = (removable & (channels > 0)).nonzero().flatten()
    index = {g: i for i, g in enumerate(dict.fromkeys(group[units].tolist()))}
    return Candidates(
        units=units,
        scores=total[units] / channels[units],
        channels=channels[units],
        group=torch.tensor([index[g] for g in group[units].tolist()], dtype=torch.long),
        layers=[layers[g] for g in index],
        widths=[widths[g] for g in index],
    )
