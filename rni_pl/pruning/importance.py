"""Importance of channels, and of the dependency groups that can be removed."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rni_pl import norm
from rni_pl.errors import PruningError
from rni_pl.pruning.dependency import DependencyGraph


@dataclass
class Candidates:
    """Dependency groups that may be removed, K of them, in the order of the network.

    Attributes:
        groups: their numbers, shape (K,).
        scores: the importance of each, float64, shape (K,).
        channels: scaled channels in each, shape (K,).
        layer_set: which set of norm layers each belongs to, shape (K,). In a plain network a set
            is one layer; layers that residual additions tie are one set.
        layers: the norm layers of each set.
        widths: how many channels one group has in each of these layers.
    """

    groups: Tensor
    scores: Tensor
    channels: Tensor
    layer_set: Tensor
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


def candidates(graph: DependencyGraph, scores: dict[str, Tensor], removable: Tensor) -> Candidates:
    """The removable groups with their scores: the mean over a group's scaled channels.

    `removable` is a bool tensor over groups, shape (graph.size,).
    """
    total = torch.zeros(graph.size, dtype=torch.float64, device="cpu")
    channels = torch.zeros(graph.size, dtype=torch.long, device="cpu")
    if scores:
        held = torch.cat([graph.layers[name].outputs for name in scores])
        total.index_add_(0, held, torch.cat(list(scores.values())))
        channels.index_add_(0, held, torch.ones_like(held))
    of, layers, widths = _layer_sets(graph, list(scores))
    groups = (removable & (channels > 0)).nonzero().flatten()
    index = {s: i for i, s in enumerate(dict.fromkeys(of[groups].tolist()))}
    return Candidates(
        groups=groups,
        scores=total[groups] / channels[groups],
        channels=channels[groups],
        layer_set=torch.tensor(
            [index[s] for s in of[groups].tolist()], dtype=torch.long, device="cpu"
        ),
        layers=[layers[s] for s in index],
        widths=[widths[s] for s in index],
    )


def _layer_sets(
    graph: DependencyGraph, names: list[str]
) -> tuple[Tensor, list[tuple[str, ...]], list[tuple[int, ...]]]:
    """The set of norm layers that each group is in; the layers of each set, and widths there."""
    of = torch.zeros(graph.size, dtype=torch.long, device="cpu")
    layers: list[tuple[str, ...]] = [()]  # of each set that was met on the way
    widths: list[tuple[int, ...]] = [()]
    for name in names:
        groups = graph.layers[name].outputs
        before, place = of[groups].unique(return_inverse=True)
        of[groups] = len(layers) + place
        layers += [(*layers[s], name) for s in before.tolist()]
        here = place.bincount() // of[groups.unique()].unique(return_counts=True)[1]
        widths += [(*widths[s], w) for s, w in zip(before.tolist(), here.tolist(), strict=True)]
    return of, layers, widths
