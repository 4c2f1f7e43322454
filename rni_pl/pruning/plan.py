"""What to remove: from scores and what the user asks for to a mask of dependency groups."""

import warnings
from dataclasses import dataclass
from numbers import Integral, Real

import torch
from torch import Tensor

from rni_pl.cost import macs_on, parameter_count
from rni_pl.errors import PruningError
from rni_pl.pruning import importance, selection
from rni_pl.pruning.dependency import DependencyGraph
from rni_pl.valley import MAX_DEPTH, find_valley


@dataclass(frozen=True)
class PruningOptions:
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
        _one_of("target", self.target, selection.TARGETS)
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
    """Masks over dependency groups: those that may go, and those that are kept.

    `limited` says whether the layers keep more than their scores say, see `PruningReport`.
    """

    removable: Tensor
    keep: Tensor
    limited: bool = False


def make_plan(graph: DependencyGraph, options: PruningOptions) -> Plan:
    """Rank what may go, and select.

    Raises:
        PruningError: nothing can be pruned, the ratio leaves too little, or no valley is there.
    """
    by_layer = importance.channel_scores(graph.model, graph.scaled)
    removable = removable_groups(graph, options.coupled)
    candidates = importance.candidates(graph, by_layer, removable)
    if not len(candidates.groups):
        raise PruningError(
            f"nothing to prune in {type(graph.model).__name__}: {why_nothing(graph)}"
        )
    selector = _Selector(graph, candidates, options)
    keep = selector.select()
    return Plan(removable, keep, selector.is_limited(keep))


class _Selector:
    """A user's options applied to the candidates of a graph."""

    def __init__(
        self, graph: DependencyGraph, candidates: importance.Candidates, options: PruningOptions
    ) -> None:
        self.graph, self.candidates, self.options = graph, candidates, options
        self.layers = selection.ranked(candidates)

    def select(self) -> Tensor:
        """Mask of the groups to keep, shape (graph.size,)."""
        ratio = self.options.ratio
        if ratio == 0:
            return torch.ones(self.graph.size, dtype=torch.bool, device="cpu")
        if isinstance(ratio, str):
            return self._above([self._valley()] * len(self.layers))
        by_channels = self.options.target == "channels"
        if by_channels:
            selection.check_enough_left(self.candidates, ratio)
        if by_channels and self.options.round_to == 1:
            keep = self._cut(ratio)  # the paper's rule, to the letter
            self._warn_of_ties(keep, ratio)
            return keep
        steps = int(self.candidates.channels.sum())
        return selection.cut_to_budget(self._cut, self._removed(), ratio, steps)

    def is_limited(self, keep: Tensor) -> bool:
        """Whether scores alone would keep less, where the ratio is one of channels."""
        options = self.options
        if isinstance(options.ratio, str) or not options.ratio or options.target != "channels":
            return False
        found = self.candidates
        limits = selection.thresholds(found, self.layers, options.ratio, options.scope)
        above = (
            found.scores > torch.tensor(limits, dtype=torch.double, device="cpu")[found.layer_set]
        )
        return int(above.sum()) < int(keep[found.groups].sum())

    def _warn_of_ties(self, keep: Tensor, ratio: float) -> None:
        """Warn where many channels share the score at the quantile: all of them go, or none."""
        removed, scores = self._removed()(keep), self.candidates.scores
        if abs(removed - ratio) <= 0.05:
            return
        limits = selection.thresholds(self.candidates, self.layers, ratio, self.options.scope)
        alike = max(
            int((scores[layer.places] == limit).sum())
            for layer, limit in zip(self.layers, limits, strict=True)
        )
        if alike > 1:
            warnings.warn(
                f"prune.ratio={ratio}: {removed:.1%} of the channels go, as {alike} of a layer "
                "have the very score that divides them",
                stacklevel=2,
            )

    def _cut(self, ratio: float) -> Tensor:
        if ratio == 0:
            return torch.ones(self.graph.size, dtype=torch.bool, device="cpu")
        scope = self.options.scope
        limits = selection.thresholds(self.candidates, self.layers, ratio, scope)
        return self._above(limits)

    def _above(self, limits: list[float]) -> Tensor:
        keep = torch.ones(self.graph.size, dtype=torch.bool, device="cpu")
        keep[self.candidates.groups] = selection.keep_above(
            self.candidates, self.layers, limits, self.options.floor
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

    def _removed(self) -> selection.Removed:
        everything = torch.ones(self.graph.size, dtype=torch.bool, device="cpu")
        if self.options.target == "channels":
            groups, channels = self.candidates.groups, self.candidates.channels
            return lambda keep: float((~keep[groups] * channels).sum() / channels.sum())
        costs = selection.Costs(self.graph)
        if self.options.target == "params":
            dense, total = costs.params(everything), parameter_count(self.graph.model)
            return lambda keep: (dense - costs.params(keep)) / total
        dense, total = (
            costs.macs(everything),
            macs_on(self.graph.model, self.graph.example.args, self.graph.example.kwargs),
        )
        return lambda keep: (dense - costs.macs(keep)) / total


def removable_groups(graph: DependencyGraph, coupled: bool) -> Tensor:
    """Groups that need not stay; with `coupled`, those tied by residual additions among them."""
    removable = torch.ones(graph.size, dtype=torch.bool, device="cpu")
    removable[torch.tensor([0, *graph.reasons], device="cpu")] = False
    if not coupled:
        removable[torch.tensor(list(graph.coupled), dtype=torch.long, device="cpu")] = False
    return removable


def why_stays(graph: DependencyGraph, layer: str) -> str:
    """Why the channels of a norm layer have to stay."""
    group = int(graph.layers[layer].outputs[0])
    if group == 0:
        return graph.why_fixed(layer)
    if group in graph.reasons:
        return graph.reasons[group]
    return f"tied by a residual connection: {graph.coupled[group]}"


def why_nothing(graph: DependencyGraph) -> str:
    """Why no group can go."""
    if not graph.scaled:
        return "it has no BatchNorm with scales"
    first = graph.scaled[0]
    group = int(graph.layers[first].outputs[0])
    tied = group in graph.coupled and group not in graph.reasons
    hint = "; coupled=true prunes these" if tied else ""
    return f"{first}: {why_stays(graph, first)}{hint}"


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise PruningError(f"prune.{name}={value!r} is unknown; allowed: {', '.join(allowed)}")
