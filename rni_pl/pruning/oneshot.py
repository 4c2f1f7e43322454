"""One-shot pruning: trace, score, select, check, remove."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rni_pl import norm
from rni_pl.errors import PruningError
from rni_pl.pruning import graph as graphs
from rni_pl.pruning import scores as scoring
from rni_pl.pruning import selection, surgery


@dataclass
class PruningReport:
    """What was removed and what was not.

    Attributes:
        ratio: the share that was asked for.
        scope: ``"global"`` or ``"local"``.
        kept: norm layer -> sorted indices of the channels it keeps, in forward order.
        skipped: norm layer that was left whole -> the reason.
        widths: norm layer in `kept` -> its number of channels before.
        structure: sizes of the changed layers, for `rni_pl.pruning.surgery.resize`.
    """

    ratio: float
    scope: str
    kept: dict[str, list[int]]
    skipped: dict[str, str]
    widths: dict[str, int]
    structure: surgery.Structure = field(repr=False)

    @property
    def channels_dense(self) -> int:
        """Channels of the layers in `kept`, before."""
        return sum(self.widths.values())

    @property
    def channels_pruned(self) -> int:
        """Channels of the layers in `kept`, after."""
        return sum(len(channels) for channels in self.kept.values())


def prune(
    model: nn.Module,
    example_inputs: Any,
    ratio: float,
    scope: str = "global",
    *,
    min_channels: int = 3,
) -> tuple[nn.Module, PruningReport]:
    """Remove the share `ratio` of channels whose scales are smallest.

    Args:
        model: any network that `torch.fx` can trace; it is not touched.
        example_inputs: one batch (or a tuple of the forward's arguments) on the model's device.
        ratio: share of the prunable channels to remove, in [0, 1).
        scope: ``"global"`` ranks the channels of all layers together, ``"local"`` each layer's.
        min_channels: what every layer keeps at least (fewer if it has fewer).

    Returns:
        A smaller copy of the model, and a report.

    Raises:
        PruningError: the ratio or scope is not allowed, the network cannot be traced, or nothing
            in it can be pruned.
    """
    selection.check(ratio, scope)
    graph = graphs.trace(model, example_inputs)
    scores = scoring.channel_scores(model, graph.scaled)
    removable = removable_units(graph)
    while True:
        candidates = scoring.candidates(graph, scores, removable)
        if not len(candidates.units):
            raise PruningError(f"nothing to prune in {type(model).__name__}: {_why_nothing(graph)}")
        keep = torch.ones(graph.size, dtype=torch.bool)
        keep[candidates.units] = selection.select(candidates, ratio, scope, min_channels)
        unfit = graph.unfit(keep)
        if unfit is None:
            break
        units, why = unfit  # these have to stay; what else goes is decided anew
        removable[units] = False
        graph.reasons.update(dict.fromkeys(units.tolist(), why))
    pruned, structure = surgery.remove(model, graph, keep)
    return pruned, _report(model, graph, keep, removable, (ratio, scope), structure)


def removable_units(graph: graphs.ChannelGraph) -> Tensor:
    """Units that neither have to stay nor are tied by residual additions, shape (size,)."""
    removable = torch.ones(graph.size, dtype=torch.bool)
    removable[[0, *graph.reasons, *graph.coupled]] = False
    return removable


def _report(
    model: nn.Module,
    graph: graphs.ChannelGraph,
    keep: Tensor,
    removable: Tensor,
    request: tuple[float, str],
    structure: surgery.Structure,
) -> PruningReport:
    kept, skipped, widths = {}, {}, {}
    for name in graph.scaled:
        units = graph.layers[name].outputs
        if bool(removable[units].any()):
            kept[name] = keep[units].nonzero().flatten().tolist()
            widths[name] = len(units)
        else:
            skipped[name] = _reason(graph, int(units[0]))
    reached = set(graph.scaled)
    for name, _ in norm.scaled_norms(model):
        if name not in reached:
            skipped[name] = "is not reached by the forward pass"
    return PruningReport(*request, kept, skipped, widths, structure)


def _reason(graph: graphs.ChannelGraph, unit: int) -> str:
    if unit == 0:
        return "holds the network's input or other fixed channels"
    if unit in graph.reasons:
        return graph.reasons[unit]
    return f"tied by a residual connection ({graph.coupled[unit]})"


def _why_nothing(graph: graphs.ChannelGraph) -> str:
    if not graph.scaled:
        return "it has no BatchNorm2d with scales"
    first = graph.scaled[0]
    return f"{first} {_reason(graph, int(graph.layers[first].outputs[0]))}"
