"""What to remove: from scores and what the user asks for to a mask of dependency groups."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from rni_pl.cost import macs_on, parameter_count
from rni_pl.errors import NothingToPruneError, PruningError
from rni_pl.norm.valley import MAX_DEPTH, find_valley
from rni_pl.pruning.costs import Costs
from rni_pl.pruning.dependency import DependencyGraph
from rni_pl.pruning.importance import Importance, Scale, importance_of
from rni_pl.pruning.patterns import check_pattern, matches
from rni_pl.pruning.selection import SCOPES, TARGETS, Candidates, Floor, cut_to_budget


@dataclass(frozen=True)
class PruningOptions:
    """What the user asks for; see `rni_pl.pruning.prune`."""

    ratio: float | str
    threshold: float | None = None
    scope: str = "global"
    coupled: bool = False
    target: str = "channels"
    round_to: int = 1
    min_channels: int = 3
    max_ratio: float | None = None
    ratios: Mapping[str, float] | None = None
    ignore: Sequence[str] = ()
    importance: Importance = field(default_factory=Scale)

    def __post_init__(self) -> None:
        object.__setattr__(self, "importance", importance_of(self.importance))
        object.__setattr__(self, "ratios", dict(self.ratios or {}))
        ratio = self.ratio
        if not _is_share(ratio) and ratio not in ("auto", "plan", "threshold"):
            raise PruningError(
                f"prune.ratio={ratio!r} is out of range; allowed: 0 <= ratio < 1, or auto"
            )
        for pattern, value in (self.ratios or {}).items():
            if not _is_share(value):
                raise PruningError(
                    f"prune.ratios[{pattern!r}]={value!r} is out of range; allowed: 0 <= ratio < 1"
                )
        if self.max_ratio is not None and not _is_share(self.max_ratio):
            raise PruningError(
                f"prune.max_ratio={self.max_ratio!r} is out of range; allowed: 0 <= ratio < 1"
            )
        if isinstance(self.ignore, str):
            raise PruningError(f"prune.ignore={self.ignore!r} is not allowed; allowed: a list")
        _one_of("scope", self.scope, SCOPES)
        _one_of("target", self.target, TARGETS)
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
    removable = removable_groups(graph, options.coupled)
    found = Candidates.of(graph, removable, options.importance)
    if not len(found.groups):
        raise NothingToPruneError(
            f"nothing to prune in {type(graph.model).__name__}: {why_nothing(graph)}"
        )
    keep = torch.ones(graph.size, dtype=torch.bool, device="cpu")
    ratios = _ratios_of_sets(graph, found, options.ratios or {})
    chosen = _select(graph, found, options, ratios)
    keep[found.groups] = chosen
    by_channels = options.target == "channels" and not isinstance(options.ratio, str)
    if not by_channels or not options.ratio:
        return Plan(removable, keep)
    limits = found.thresholds(options.ratio, options.scope, ratios)  # type: ignore[arg-type]
    if options.round_to == 1 and not ratios:
        _warn_of_ties(found, chosen, options.ratio, limits)  # type: ignore[arg-type]
    return Plan(removable, keep, int(found.above(limits).sum()) < int(chosen.sum()))


def _select(
    graph: DependencyGraph, found: Candidates, options: PruningOptions, ratios: dict[int, float]
) -> Tensor:
    """Mask of the candidates to keep; `ratios` are those of sets of layers that have their own."""

    def cut(ratio: float) -> Tensor:
        limits = found.thresholds(ratio, options.scope, ratios)
        return found.keep_above(limits, floor)

    most = 1.0 if options.max_ratio is None else options.max_ratio
    ratio, floor = options.ratio, Floor(options.min_channels, options.round_to, most)
    if isinstance(ratio, str):
        limits = found.thresholds(0, "local", ratios)
        rest = [number for number in range(len(limits)) if number not in ratios]
        limits[rest] = _valley(found) if options.threshold is None else options.threshold
        return found.keep_above(limits, floor)
    if options.target == "channels" and ratio:
        found.check_enough_left(ratio)
    if ratio == 0 or (options.target == "channels" and options.round_to == 1):
        return cut(ratio)  # the paper's rule, to the letter
    removed = _removed(graph, found, options.target)
    return cut_to_budget(cut, removed, ratio, steps=int(found.channels.sum()))


def _ratios_of_sets(
    graph: DependencyGraph, found: Candidates, ratios: Mapping[str, float]
) -> dict[int, float]:
    """The ratios of sets of layers that have one of their own; the first pattern counts."""
    for pattern in ratios:
        check_pattern("prune.ratios", pattern, graph.parts.modules)
    own: dict[int, float] = {}
    place = torch.full((graph.size,), -1, device="cpu")
    place[found.groups] = torch.arange(len(found.groups), device="cpu")
    for pattern, ratio in ratios.items():
        for name in graph.ranked:
            if not matches(name, pattern) and not matches(graph.title(name), pattern):
                continue
            places = place[graph.layers[name].outputs]
            for number in found.layer_set[places[places >= 0]].unique().tolist():
                own.setdefault(number, ratio)
    return own


def ignore(graph: DependencyGraph, patterns: Sequence[str]) -> None:
    """Keep the channels of some layers for good.

    Raises:
        PruningError: a pattern matches none.
    """
    for pattern in patterns:
        check_pattern("prune.ignore", pattern, graph.parts.modules)
        for name, layer in graph.channels.layers.items():
            if matches(name, pattern):
                graph.fix(layer.outputs, f"is in prune.ignore={pattern}")


def _removed(graph: DependencyGraph, found: Candidates, target: str) -> Callable[[Tensor], float]:
    """The share of what `target` names that a mask of candidates removes."""
    if target == "channels":
        return lambda chosen: float(found.channels[~chosen].sum() / found.channels.sum())
    costs, everything = Costs(graph), torch.ones(graph.size, dtype=torch.bool, device="cpu")
    if target == "params":
        count, total = costs.params, parameter_count(graph.model)
    else:
        count, total = costs.macs, macs_on(graph.model, graph.example.args, graph.example.kwargs)

    def removed(chosen: Tensor) -> float:
        keep = everything.clone()
        keep[found.groups] = chosen
        return (count(everything) - count(keep)) / total

    return removed


def _warn_of_ties(found: Candidates, chosen: Tensor, ratio: float, limits: Tensor) -> None:
    """Warn where many channels share the score at the quantile: all of them go, or none."""
    removed = float(found.channels[~chosen].sum() / found.channels.sum())
    if abs(removed - ratio) <= 0.05:
        return
    tied = found.scores == limits[found.layer_set]
    alike = int(found.layer_set[tied].bincount(minlength=1).max())
    if alike > 1:
        warnings.warn(
            f"prune.ratio={ratio}: {removed:.1%} of the channels go, as {alike} of a layer "
            "have the very score that divides them",
            stacklevel=2,
        )


def _valley(found: Candidates) -> float:
    valley = find_valley(found.scores.repeat_interleave(found.channels))
    if valley is None or not valley.divides:
        seen = "a single mode"
        if valley is not None:
            seen = f"a valley where the density is {valley.depth:.3f} of the lower peak's"
        raise PruningError(
            f"prune.ratio=auto: the scores show {seen}, not two modes with a valley under "
            f"{MAX_DEPTH} of the lower peak; give a ratio"
        )
    return valley.score


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
    if not graph.ranked:
        return "it has no BatchNorm with scales; another importance ranks convolutions"
    first = graph.ranked[0]
    group = int(graph.layers[first].outputs[0])
    tied = group in graph.coupled and group not in graph.reasons
    hint = "; coupled=true prunes these" if tied else ""
    return f"{first}: {why_stays(graph, first)}{hint}"


def _is_share(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and 0 <= float(value) < 1


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise PruningError(f"prune.{name}={value!r} is unknown; allowed: {', '.join(allowed)}")
