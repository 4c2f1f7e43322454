"""One-shot pruning: trace, score, select, check, remove."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rni_pl import norm
from rni_pl.errors import PruningError
from rni_pl.pruning import graph as graphs
from rni_pl.pruning import surgery
from rni_pl.pruning.absorb import Absorbed, absorb_constants
from rni_pl.pruning.numbering import map_tensors
from rni_pl.pruning.plan import Plan, Request, make_plan, why_stays


@dataclass
class PruningReport:
    """What was removed and what was not.

    Attributes:
        ratio: the share that was asked for, or ``"auto"``.
        scope: ``"global"`` or ``"local"``.
        target: what `ratio` is a share of.
        kept: norm layer -> sorted indices of the channels it keeps, in forward order.
        skipped: norm layer that was left whole -> the reason.
        widths: norm layer in `kept` -> its number of channels before.
        absorbed: what became of the constants that removed channels emit; None: nothing was done.
        floored: whether `min_channels` or `round_to` had the layers keep more channels, all in all,
            than their scores say, where `ratio` is a share of channels.
    """

    ratio: float | str
    scope: str
    target: str
    kept: dict[str, list[int]]
    skipped: dict[str, str]
    widths: dict[str, int]
    absorbed: Absorbed | None
    floored: bool = False

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
    ratio: float | str,
    scope: str = "global",
    *,
    coupled: bool = False,
    target: str = "channels",
    round_to: int = 1,
    min_channels: int = 3,
    absorb: bool = False,
) -> tuple[nn.Module, PruningReport]:
    """Remove the channels whose scales are smallest.

    Args:
        model: any network that `torch.fx` can trace; it is not touched.
        example_inputs: one batch (or a tuple of the forward's arguments) on the model's device.
        ratio: the share to remove, in [0, 1), of what `target` names; ``"auto"`` cuts at the
            valley between the two modes of the scores.
        scope: ``"global"`` ranks the channels of all layers together, ``"local"`` each layer's.
        coupled: also remove channels tied by residual additions, scored together.
        target: ``"channels"`` (of the prunable layers), ``"params"`` or ``"macs"`` (of the whole
            network; hit within 1 %, or the closest below that the network allows).
        round_to: of the channels that can go, every pruned layer keeps a multiple of this many, or
            all. Where a norm layer holds some that have to stay, these come on top.
        min_channels: what every layer keeps at least (fewer if it has fewer).
        absorb: fold the constants that removed channels would still emit into what follows.

    Returns:
        A smaller copy of the model, and a report.

    Raises:
        TypeError: `model` is no network.
        PruningError: an argument is not allowed, the network cannot be traced, or nothing
            in it can be pruned.

    The pruned network computes what the given one does with the scales and biases of the removed
    channels at 0, wherever activations make 0 of 0. One that does not (sigmoid, ``clamp(min=1)``)
    makes a constant of a removed channel, which is gone, too, unless `absorb` folds it in.
    """
    request = Request(ratio, scope, coupled, target, round_to, min_channels)
    inputs = graphs.as_tuple(example_inputs)
    graph = graphs.trace(model, inputs)
    plan = make_plan(model, graph, request, inputs)
    pruned = surgery.remove(model, graph.layers, plan.keep)
    if not graph.complete:
        _check_training(model, pruned, inputs)
    absorbed = absorb_constants(model, pruned, graph, plan.keep, inputs) if absorb else None
    return pruned, _report(model, graph, plan, request, absorbed)


def _check_training(model: nn.Module, pruned: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Raise where the pruned network cannot run in training mode, while the given one can."""
    pairs = map_tensors(inputs, lambda x: torch.cat([x, x]))  # BatchNorm needs two images
    for network in (model, pruned):
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                copy.deepcopy(network).train()(*pairs)
        except Exception as error:  # whatever its forward pass may raise
            if network is model:
                return
            raise PruningError(
                f"{type(model).__name__} has layers that run in training alone and that torch.fx "
                "cannot trace; they would not fit the pruned network"
            ) from error


def _report(
    model: nn.Module,
    graph: graphs.ChannelGraph,
    plan: Plan,
    request: Request,
    absorbed: Absorbed | None,
) -> PruningReport:
    kept, skipped, widths = {}, {}, {}
    for name in graph.scaled:
        units = graph.layers[name].outputs
        if bool(plan.removable[units].any()):
            kept[name] = plan.keep[units].nonzero().flatten().tolist()
            widths[name] = len(units)
        else:
            skipped[name] = why_stays(graph, name)
    reached = set(graph.scaled)
    for name, _ in norm.scaled_norms(model):
        if name not in reached:
            skipped[name] = graph.why_unknown(name)
    asked = request.ratio, request.scope, request.target
    return PruningReport(*asked, kept, skipped, widths, absorbed, plan.floored)
