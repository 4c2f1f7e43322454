"""One-shot pruning: find dependencies, score, select, remove, verify."""

from typing import Any

from torch import nn

from rni_pl.pruning.absorb import Absorbed, absorb_constants
from rni_pl.pruning.check import fits
from rni_pl.pruning.copying import Parts
from rni_pl.pruning.dependency import DependencyGraph
from rni_pl.pruning.plan import Plan, PruningOptions, make_plan
from rni_pl.pruning.report import PruningReport, report_of
from rni_pl.pruning.run import Example
from rni_pl.pruning.surgery import Cut, remove
from rni_pl.pruning.trace import trace
from rni_pl.pruning.verify import compare


def prune(
    model: nn.Module,
    example_inputs: Any,
    ratio: float | str,
    scope: str = "global",
    *,
    example_kwargs: dict[str, Any] | None = None,
    coupled: bool = False,
    target: str = "channels",
    round_to: int = 1,
    min_channels: int = 3,
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
    options = PruningOptions(ratio, scope, coupled, target, round_to, min_channels)
    graph = trace(model, Example.of(example_inputs, example_kwargs))
    plan, pruned = plan_that_fits(graph, options, verify)
    network = pruned.network
    absorbed: Absorbed | None = absorb_constants(network, graph, plan.keep) if absorb else None
    return network, report_of(graph, plan, options, pruned, absorbed)


def plan_that_fits(
    graph: DependencyGraph, options: PruningOptions, verify: bool = False
) -> tuple[Plan, Parts]:
    """Select and remove, and keep what turns out not to fit: the plan, and the pruned network.

    Raises:
        PruningError: see `prune`.
    """
    while True:
        plan = make_plan(graph, options)
        cut = Cut.of(graph, plan.keep)
        tensors = cut.tensors(graph.parts)
        outputs = fits(graph, plan.keep, cut, tensors if verify else None)
        if outputs is None:
            continue
        pruned = remove(graph.parts, cut, tensors)
        if verify and cut.left:
            compare(graph, cut, pruned, outputs)
        return plan, pruned
