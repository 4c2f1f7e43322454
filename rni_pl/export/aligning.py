"""Zero channels that bring pruned layers to widths at which engines are fast.

ONNX Runtime's fast convolutions read channels in fours: one channel more or less than a multiple,
and a pruned network is hardly faster than the dense one. So that removing any number of channels
pays, a layer is filled up with channels whose weights are zero, and which are read with weight
zero: the network computes what it did.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rni_pl.export.folding import is_bare, is_plain_conv
from rni_pl.pruning.dependency import DependencyGraph


@dataclass(frozen=True)
class Side:
    """The channels that a layer reads, or makes: their groups, and where in its weight each is.

    A new one has group -1 and place -1.
    """

    groups: Tensor
    places: Tensor

    def widened(self, groups: Tensor, count: int) -> "Side | None":
        """With `count` new channels behind `groups`; None where those are not one block here.

        Behind a flattening every channel occurs several times in a row, and so do the new ones.
        """
        mine = torch.isin(self.groups, groups)
        times, rest = divmod(int(mine.sum()), len(groups))
        start = int(mine.nonzero()[0])
        block = groups.repeat_interleave(times)
        end = start + len(block)
        if rest or not torch.equal(self.groups[start:end], block):
            return None
        new = torch.full((times * count,), -1)
        return Side(*(torch.cat([t[:end], new, t[end:]]) for t in (self.groups, self.places)))


Sides = dict[tuple[str, str], Side]  # by layer and "inputs" or "outputs"


@torch.no_grad()
def align(model: nn.Module, graph: DependencyGraph, multiple: int) -> nn.Module:
    """A copy of a folded network with widths filled up to a multiple, wherever that is possible.

    Args:
        model: the network, its norm layers folded; it is not touched.
        graph: the channels of the network before folding.
        multiple: of this many channels.
    """
    model = copy.deepcopy(model)
    sides = _sides(graph)
    changed: set[str] = set()
    for groups in _vectors(graph, multiple):
        wider = _widened(model, sides, groups, -len(groups) % multiple)
        sides.update(wider)
        changed |= {name for name, _ in wider}
    for name in changed:
        _resize(model.get_submodule(name), sides.get((name, "inputs")), sides[name, "outputs"])
    return model


def _sides(graph: DependencyGraph) -> Sides:
    return {
        (name, side): Side(groups, torch.arange(len(groups)))
        for name, layer in graph.layers.items()
        for side, groups in (("inputs", layer.inputs), ("outputs", layer.outputs))
        if groups is not None
    }


def _vectors(graph: DependencyGraph, multiple: int) -> list[Tensor]:
    """What layers make, where it is no multiple: vectors of groups, of which none has to stay."""
    stay = torch.tensor([0, *graph.reasons])
    made = {tuple(layer.outputs.tolist()): layer.outputs for layer in graph.layers.values()}
    return [
        groups
        for groups in made.values()
        if len(groups) % multiple
        and len(groups.unique()) == len(groups)
        and not torch.isin(groups, stay).any()
    ]


def _widened(model: nn.Module, sides: Sides, groups: Tensor, count: int) -> Sides:
    """The sides on which `groups` occur, with `count` new channels; none where one cannot be."""
    wider: Sides = {}
    for (name, side), channels in sides.items():
        if not torch.isin(channels.groups, groups).any():
            continue
        widened = channels.widened(groups, count)
        if widened is None or not _can_widen(model.get_submodule(name)):
            return {}
        wider[name, side] = widened
    return wider


def _can_widen(layer: nn.Module) -> bool:
    """Whether more zeros in its weight are all that a layer needs."""
    if is_plain_conv(layer):
        return layer.groups in (1, layer.in_channels)
    # A sequence stands where a norm layer was folded: there is nothing to widen.
    return type(layer) in (nn.Linear, nn.Sequential) and is_bare(layer)


def _resize(layer: nn.Module, inputs: Side | None, outputs: Side) -> None:
    """Give a layer its new channels, in place."""
    if isinstance(layer, nn.Sequential):
        return
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    assert inputs is not None
    ins, outs = len(inputs.places), len(outputs.places)
    weight = _taken(layer.weight, outputs.places, 0)
    if isinstance(layer, nn.Linear):
        layer.in_features, layer.out_features = ins, outs
    else:
        layer.in_channels, layer.out_channels = ins, outs
        layer.groups = ins if layer.groups > 1 else 1
    if getattr(layer, "groups", 1) == 1:
        weight = _taken(weight, inputs.places, 1)
    layer.weight = nn.Parameter(weight)
    if layer.bias is not None:
        layer.bias = nn.Parameter(_taken(layer.bias, outputs.places, 0))


def _taken(tensor: Tensor, places: Tensor, dim: int) -> Tensor:
    """The slices at `places` along a dimension, zeros at -1."""
    zeros = torch.zeros_like(tensor.narrow(dim, 0, 1))
    return torch.cat([tensor, zeros], dim).index_select(dim, places % (tensor.size(dim) + 1))
