"""Ratios of a network that shrank while it was trained: shares of what it began with."""

from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn

from rni_pl import cost, norm
from rni_pl.errors import PruningError
from rni_pl.norm.valley import find_valley
from rni_pl.pruning import PruningOptions, PruningReport, prune


def remaining(
    model: nn.Module, example: Tensor, options: dict[str, Any], born: dict[str, Any]
) -> dict[str, Any]:
    """Options of `rni_pl.prune` that remove what is still to go; what went counts first.

    Args:
        model, example, options: see `rni_pl.prune`; `options` has a `ratio`.
        born: see `ModelSpec`.
    """
    if options.get("plan") is not None:
        return options
    ratio, target, whole = options["ratio"], options["target"], _whole(model, example, options)
    now = whole.widths
    before = {name: born["widths"].get(name, width) for name, width in now.items()}
    if ratio == "auto":
        PruningOptions(ratio, scope=options["scope"])  # which refuses a cut for each layer
        return {**options, "ratio": None, "threshold": _valley(model, whole, born)}
    if target == "params":
        return {**options, "ratio": _rest(ratio, born[target], cost.parameter_count(model))}
    if target == "macs":
        size = cost.macs(model, list(example.shape[1:]))
        return {**options, "ratio": _rest(ratio, born[target], size)}
    if options["scope"] == "global":
        return {**options, "ratio": _rest(ratio, sum(before.values()), sum(now.values()))}
    ratios = {name: _rest(ratio, before[name], now[name], warn=False) for name in now}
    return {**options, "ratios": {**(options.get("ratios") or {}), **ratios}}


def of_born(report: PruningReport, ratio: Any, born: dict[str, Any]) -> PruningReport:
    """The report with the ratio that was asked for, and the widths that layers began with."""
    if report.ratio != "plan":
        report.ratio = ratio
    report.widths = {name: born["widths"].get(name, n) for name, n in report.widths.items()}
    return report


def _whole(model: nn.Module, example: Tensor, options: dict[str, Any]) -> PruningReport:
    """Which layers can lose channels now, and how many they have."""
    nothing = {**options, "ratio": 0.0, "target": "channels", "absorb": False, "verify": False}
    return prune(model, example, **nothing)[1]


def _rest(ratio: float, before: int, now: int, warn: bool = True) -> float:
    rest = 1 - (1 - ratio) * before / now
    if rest < 0 and warn:
        rank_zero_warn(
            f"prune.ratio={ratio} was asked for, {1 - now / before:.3f} went in training already"
        )
    return max(rest, 0.0)


def _valley(model: nn.Module, whole: PruningReport, born: dict[str, Any]) -> float:
    sizes = norm.scale_sizes(model)
    scores = torch.cat([*(sizes[name] for name in whole.widths), torch.tensor(born["gone"])])
    valley = find_valley(scores.double())
    if valley is None or not valley.divides:
        raise PruningError(
            "prune.ratio=auto: the scores, those of channels that went among them, do not show two "
            "modes; give a ratio"
        )
    return valley.score
