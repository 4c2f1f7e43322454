"""One-shot pruning: find dependencies, score, select, remove, verify."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from rni_pl.errors import PruningError
from rni_pl.pruning import planfile
from rni_pl.pruning.absorb import absorb_constants
from rni_pl.pruning.check import fits
from rni_pl.pruning.copying import Parts
from rni_pl.pruning.dependency import DependencyGraph
from rni_pl.pruning.importance import Importance
from rni_pl.pruning.plan import Plan, PruningOptions, make_plan
from rni_pl.pruning.plan import ignore as keep_ignored
from rni_pl.pruning.report import PruningReport, report_of
from rni_pl.pruning.run import Example
from rni_pl.pruning.surgery import Cut, remove
from rni_pl.pruning.trace import trace
from rni_pl.pruning.verify import compare


def prune(
    model: nn.Module,
    example_inputs: Any,
    ratio: float | str | None = None,
    scope: str = "global",
    *,
    example_kwargs: dict[str, Any] | None = None,
    coupled: bool = False,
    target: str = "channels",
    round_to: int = 1,
    min_channels: int = 3,
    max_ratio: float | None = None,
    ratios: Mapping[str, float] | None = None,
    ignore: Sequence[str] = (),
    importance: str | Importance | Callable[[nn.Module], Tensor] = "scale",
    threshold: float | None = None,
    plan: Mapping[str, Any] | None = None,
    absorb: bool = False,
    verify: bool = True,
) -> tuple[nn.Module, PruningReport]:
    """Remove the channels whose scales are smallest.

    Args:
        model: any network that torch can run; it is not touched.
        example_inputs: one batch on the model's device. A tuple is the positional arguments of the
            forward pass, anything else (a dictionary or a list of images, too) is one argument.
        ratio: the share to remove, in [0, 1), of what `target` names; ``"auto"`` cuts at the
            valley between the two modes of the scores.
        scope: ``"global"`` ranks the channels of all layers together, ``"local"`` each layer's.
        example_kwargs: further arguments by name.
        coupled: also remove channels tied by residual additions, scored together.
        target: ``"channels"`` (of the prunable layers), ``"params"`` or ``"macs"`` (of the whole
            network; hit within 1 %, or the closest below that the network allows).
        round_to: of the channels that can go, every pruned layer keeps a multiple of this many, or
            all. Where a norm layer holds some that have to stay, these come on top.
        min_channels: what every layer keeps at least (fewer if it has fewer).
        max_ratio: what every layer loses at most, in [0, 1).
        ratios: name or pattern of layers -> the share that each of them loses by its own scores,
            whatever `ratio` and `scope` say of the others; the first pattern that matches counts.
        ignore: names or patterns of layers that keep all channels; a module stands for all in it.
        importance: what channels are ranked by: a name of `IMPORTANCES`, an `Importance`, or a
            function of a layer that gives a score for each of its channels.
        threshold: in place of `ratio`, the score at and below which channels go.
        plan: in place of `ratio`, what an earlier report's `plan` says, edited or not.
        absorb: fold the constants that removed channels would still emit into what follows.
        verify: compare the outputs on the example with those of the masked network.

    Returns:
        A smaller copy of the model, and a report.

    Raises:
        TypeError: `model` is no network.
        PruningError: an argument is not allowed, the network cannot be run on the example or be
            copied, nothing in it can be pruned, or the pruned network computes something else.

    The pruned network computes what the given one does with the scales and biases of the removed
    channels at 0, wherever activations make 0 of 0. One that does not (sigmoid, ``clamp(min=1)``)
    makes a constant of a removed channel, which is gone, too, unless `absorb` folds it in.
    """
    done = removal(
        model, example_inputs, ratio, scope=scope, example_kwargs=example_kwargs, coupled=coupled,
        target=target, round_to=round_to, min_channels=min_channels, max_ratio=max_ratio,
        ratios=ratios, ignore=ignore, importance=importance, plan=plan,
        threshold=threshold, absorb=absorb, verify=verify,
    )  # fmt: skip
    return done.pruned.network, done.report


@dataclass
class Removal:
    """What a network was pruned by, and what came of it."""

    graph: DependencyGraph
    plan: Plan
    pruned: Parts
    report: PruningReport


def removal(
    model: nn.Module,
    example_inputs: Any,
    ratio: float | str | None,
    *,
    example_kwargs: dict[str, Any] | None = None,
    plan: Mapping[str, Any] | None = None,
    absorb: bool = False,
    verify: bool = True,
    **settings: Any,
) -> Removal:
    """Trace, select (or take the plan that is given), remove, verify; see `prune`."""
    given = {"ratio": ratio, "threshold": settings.get("threshold"), "plan": plan}
    names = [name for name, value in given.items() if value is not None]
    if len(names) != 1:
        raise PruningError("one of ratio, threshold and plan is given, and only one")
    options = PruningOptions(names[0] if ratio is None else ratio, **settings)
    example = Example.of(example_inputs, example_kwargs)
    if plan is None:
        graph = trace(model, example, not options.importance.of_scales)
        keep_ignored(graph, options.ignore)
        selected, pruned = plan_that_fits(graph, options, verify)
    else:
        by_rows, kept = planfile.read(plan, Parts.of(model))
        graph = trace(model, example, by_rows)
        selected = planfile.keep_of(graph, kept)
        pruned = pruned_by(graph, selected, verify)  # type: ignore[assignment]
        if pruned is None:
            raise PruningError("the plan does not fit: what it removes would have to stay")
    absorbed = absorb_constants(pruned.network, graph, selected.keep) if absorb else None
    report = report_of(graph, selected, options, pruned, absorbed)
    return Removal(graph, selected, pruned, report)


def plan_that_fits(
    graph: DependencyGraph, options: PruningOptions, verify: bool = False
) -> tuple[Plan, Parts]:
    """Select and remove, and keep what turns out not to fit: the plan, and the pruned network.

    Raises:
        PruningError: see `prune`.
    """
    while True:
        plan = make_plan(graph, options)
        pruned = pruned_by(graph, plan, verify)
        if pruned is not None:
            return plan, pruned


def pruned_by(graph: DependencyGraph, plan: Plan, verify: bool) -> Parts | None:
    """The network without what a plan removes; None where that does not fit, which is kept then.

    Raises:
        PruningError: with `verify`, where it would compute something else than the masked one.
    """
    cut = Cut.of(graph, plan.keep)
    tensors = cut.tensors(graph.parts)
    outputs = fits(graph, plan.keep, cut, tensors if verify else None)
    if outputs is None:
        return None
    pruned = remove(graph.parts, cut, tensors)
    if verify and cut.left:
        compare(graph, cut, pruned, outputs)
    return pruned
