"""A plan as plain values: the channels that layers keep, to be edited and carried out later."""

import hashlib
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor

from rni_pl.errors import PruningError
from rni_pl.pruning.copying import Parts
from rni_pl.pruning.dependency import DependencyGraph
from rni_pl.pruning.plan import Plan, removable_groups, why_stays

BY = ("scales", "rows")  # what ranked the layers, see `rni_pl.pruning.importance`


def fingerprint(parts: Parts) -> str:
    """What tells networks of other layers or sizes apart: of names and shapes, not of values."""
    shapes = sorted((name, tuple(tensor.shape)) for name, tensor in parts.tensors.items())
    return hashlib.sha256(repr(shapes).encode()).hexdigest()[:16]


def read(plan: Any, parts: Parts) -> tuple[bool, dict[str, list[int]]]:
    """Whether rows were ranked, and the channels that each layer keeps.

    Raises:
        PruningError: it is no plan, or one of another network.
    """
    kept = plan.get("kept") if isinstance(plan, Mapping) else None
    if not isinstance(kept, Mapping) or plan.get("by") not in BY or not _are_channels(kept):
        raise PruningError(
            "the plan is none: it has network, by (scales or rows), and kept, {layer: [channels]}"
        )
    if plan.get("network") != fingerprint(parts):
        raise PruningError("the plan is of a network of other layers or sizes than this one")
    return plan["by"] == "rows", {name: sorted(channels) for name, channels in kept.items()}


def _are_channels(kept: Mapping[Any, Any]) -> bool:
    return all(
        isinstance(name, str) and isinstance(channels, list | tuple)
        and all(type(c) is int for c in channels)
        for name, channels in kept.items()
    )  # fmt: skip


def keep_of(graph: DependencyGraph, kept: Mapping[str, list[int]]) -> Plan:
    """The masks of a plan that was read. Layers that it leaves out keep what the others let them.

    Raises:
        PruningError: it names a layer or a channel that is not there, removes what has to stay, or
            keeps one of several channels that can only go together.
    """
    layers = {graph.title(name): name for name in graph.ranked}
    goes = torch.zeros(graph.size, dtype=torch.bool, device="cpu")
    keepers: dict[int, str] = {}
    for title, channels in kept.items():
        groups = graph.layers[_known(title, layers)].outputs
        mask = _mask(title, channels, len(groups))
        keepers.update(dict.fromkeys(groups[mask].tolist(), title))
        goes[groups[~mask]] = True
    removable = removable_groups(graph, coupled=True)
    for title in kept:
        for group in graph.layers[layers[title]].outputs.unique().tolist():
            if not goes[group]:
                continue
            if not removable[group]:
                raise PruningError(
                    f"the plan removes channels of {title} that have to stay: "
                    f"{why_stays(graph, layers[title])}"
                )
            if group in keepers:
                raise PruningError(
                    f"the plan removes a channel of {title} and keeps one of {keepers[group]}, "
                    "which can only go together"
                )
    return Plan(removable, ~goes)


def _known(title: str, layers: Mapping[str, str]) -> str:
    if title in layers:
        return layers[title]
    near = get_close_matches(title, layers, n=3)
    hint = f"; nearest: {', '.join(near)}" if near else ""
    raise PruningError(f"the plan has a layer {title!r} that nothing ranks here{hint}")


def _mask(title: str, channels: list[int], count: int) -> Tensor:
    if not channels or channels[0] < 0 or channels[-1] >= count:
        kept = channels or "no channel"
        raise PruningError(f"the plan keeps {kept} of {title}; allowed: some of 0 to {count - 1}")
    mask = torch.zeros(count, dtype=torch.bool, device="cpu")
    mask[channels] = True
    return mask
