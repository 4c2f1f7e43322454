"""What to remove: from scores and a request to a mask that is certain to fit."""

import warnings
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn

from rni_pl.errors import PruningError
from rni_pl.pruning import budget, scores, selection
from rni_pl.pruning.cost import CostModel, macs_on, parameter_count
from rni_pl.pruning.graph import ChannelGraph
from rni_pl.pruning.valley import MAX_DEPTH, find_valley


@dataclass(frozen=True)
class Request:
    """What the user asks for; see `rni_pl.pruning.prune`."""

    ratio: float | str
    scope: str = "global"
    coupled: bool = False
    target: str = "channels"
    round_to: int = 1
    min_channels: int = 3

    def __post_init__(self) -> None:
        ratio = self.ratio
        number = isinstance(ratio, Real) and not isinstance(ratio, bool) and 0 <= ratio < 1
        if not number and ratio != "auto":
            raise PruningError(
                f"prune.ratio={ratio!r} is out of range; allowed: 0 <= ratio < 1, or auto"
            )
        _one_of("scope", self.scope, selection.SCOPES)
        _one_of("target", self.target, budget.TARGETS)
        if ratio == "auto" and self.scope != "global":
            raise PruningError(
                f"prune.ratio=auto with prune.scope={self.scope} is not allowed: it cuts all "
                "layers at one score; give prune.scope=global"
            )
        for name in ("round_to", "min_channels"):
            value = getattr(self, name)
            if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
                raise PruningError(f"prune.{name}={value!r} is not allowed; allowed: integers >= 1")
            object.__setattr__(self, name, int(value))  # NumPy's numbers as well
        if isinstance(ratio, Real) and not isinstance(ratio, int):
            object.__setattr__(self, "ratio", float(ratio))

    @property
    def floor(self) -> selection.Floor:
        """What every layer keeps."""
        return selection.Floor(self.min_channels, self.round_to)


@dataclass
class Plan:
    """Masks over units: those that may go, and those that are kept.

    `floored` says whether the layers keep more than their scores say, see `PruningReport`.
    """

    removable: Tensor
    keep: Tensor
    floored: bool = False


def make_plan(
    model: nn.Module, graph: ChannelGraph, request: Request, inputs: tuple[Any, ...]
) -> Plan:
    """Select, try the selection on the graph, and keep what turns out not to fit, until all fits.

    `inputs` are the arguments of an example, for counting multiply-accumulates.

    Raises:
        PruningError: nothing can be pruned, the ratio leaves too little, or no valley is there.
    """
    by_layer = scores.channel_scores(model, graph.scaled)
    removable = removable_units(graph, request.coupled)
    while True:
        candidates = scores.candidates(graph, by_layer, removable)
        if not len(candidates.units):
            raise PruningError(
                f"nothing to prune in {type(model).__name__}: {why_nothing(model, graph)}"
            )
        selector = _Selector(model, graph, candidates, request, inputs)
        keep = selector.select()
        unfit = graph.unfit(keep)
        if unfit is None:
            return Plan(removable, keep, selector.is_floored(keep))
        units, why = unfit  # these have to stay; what else goes is decided anew
        removable[units] = False
        graph.reasons.update(dict.fromkeys(units.tolist(), why))


class _Selector:
    """A request applied to the candidates of a graph."""

    def __init__(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        candidates: scores.Candidates,
        request: Request,
        inputs: tuple[Any, ...],
    ) -> None:
        self.model, self.graph, self.candidates = model, graph, candidates
        self.request, self.inputs = request, inputs
        self.groups = selection.groups_of(candidates)

    def select(self) -> Tensor:
        """Mask of the units to keep, shape (graph.size,)."""
        ratio = self.request.ratio
        if ratio == 0:
            return torch.ones(self.graph.size, dtype=torch.bool)
        if isinstance(ratio, str):
            return self._above([self._valley()] * len(self.groups))
        by_channels = self.request.target == "channels"
        if by_channels:
            selection.check_enough_left(self.candidates, ratio)
        if by_channels and self.request.round_to == 1:
            keep = self._cut(ratio)  # the paper's rule, to the letter
            self._warn_of_ties(keep, ratio)
            return keep
        steps = int(self.candidates.channels.sum())
        return budget.cut_to_budget(self._cut, self._removed(), ratio, steps)

    def is_floored(self, keep: Tensor) -> bool:
        """Whether scores alone would keep less, where the ratio is one of channels."""
        request = self.request
        if isinstance(request.ratio, str) or not request.ratio or request.target != "channels":
            return False
        found, groups = self.candidates, self.groups
        limits = selection.thresholds(found, groups, request.ratio, request.scope)
        bare = selection.keep_above(found, groups, limits, selection.Floor(min_channels=0))
        return int(bare.sum()) < int(keep[found.units].sum())

    def _warn_of_ties(self, keep: Tensor, ratio: float) -> None:
        """Warn where many channels share the score at the quantile: all of them go, or none."""
        removed, scores = self._removed()(keep), self.candidates.scores
        if abs(removed - ratio) <= 0.05:
            return
        limits = selection.thresholds(self.candidates, self.groups, ratio, self.request.scope)
        alike = max(
            int((scores[group.places] == limit).sum())
            for group, limit in zip(self.groups, limits, strict=True)
        )
        if alike > 1:
            warnings.warn(
                f"prune.ratio={ratio}: {removed:.1%} of the channels go, as {alike} of a layer "
                "have the very score that divides them",
                stacklevel=2,
            )

    def _cut(self, ratio: float) -> Tensor:
        if ratio == 0:
            return torch.ones(self.graph.size, dtype=torch.bool)
        scope = self.request.scope
        limits = selection.thresholds(self.candidates, self.groups, ratio, scope)
        return self._above(limits)

    def _above(self, limits: list[float]) -> Tensor:
        keep = torch.ones(self.graph.size, dtype=torch.bool)
        keep[self.candidates.units] = selection.keep_above(
            self.candidates, self.groups, limits, self.request.floor
        )
        return keep

    def _valley(self) -> float:
        found = find_valley(self.candidates.scores.repeat_interleave(self.candidates.channels))
        if found is None or not found.divides:
            seen = "a single mode"
            if found is not None:
                seen = f"a valley where the density is {found.depth:.3f} of the lower peak's"
            raise PruningError(
                f"prune.ratio=auto: the scores show {seen}, not two modes with a valley under "
                f"{MAX_DEPTH} of the lower peak; give a ratio"
            )
        return found.score

    def _removed(self) -> "budget.Removed":
        everything = torch.ones(self.graph.size, dtype=torch.bool)
        if self.request.target == "channels":
            units, channels = self.candidates.units, self.candidates.channels
            return lambda keep: float((~keep[units] * channels).sum() / channels.sum())
        costs = CostModel(self.model, self.graph)
        if self.request.target == "params":
            dense, total = costs.params(everything), parameter_count(self.model)
            return lambda keep: (dense - costs.params(keep)) / total
        dense, total = costs.macs(everything), macs_on(self.model, self.inputs)
        return lambda keep: (dense - costs.macs(keep)) / total


def removable_units(graph: ChannelGraph, coupled: bool) -> Tensor:
    """Units that need not stay; with `coupled`, those tied by residual additions among them."""
    removable = torch.ones(graph.size, dtype=torch.bool)
    removable[torch.tensor([0, *graph.reasons])] = False
    if not coupled:
        removable[torch.tensor(list(graph.coupled), dtype=torch.long)] = False
    return removable


def why_stays(graph: ChannelGraph, layer: str) -> str:
    """Why the channels of a norm layer have to stay."""
    unit = int(graph.layers[layer].outputs[0])
    if unit == 0:
        return graph.why_fixed(layer)
    if unit in graph.reasons:
        return graph.reasons[unit]
    return f"tied by a residual connection ({graph.coupled[unit]})"


def why_nothing(model: nn.Module, graph: ChannelGraph) -> str:
    """Why no unit can go."""
    if not graph.scaled:
        synced = any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())
        hint = "; it has SyncBatchNorm: prune it before it is converted" if synced else ""
        return f"it has no BatchNorm2d with scales{hint}"
    first = graph.scaled[0]
    unit = int(graph.layers[first].outputs[0])
    hint = (
        "" if unit in graph.reasons or unit not in graph.coupled else "; coupled=true prunes these"
    )
    return f"{first}: {why_stays(graph, first)}{hint}"


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise PruningError(f"prune.{name}={value!r} is unknown; allowed: {', '.join(allowed)}")
