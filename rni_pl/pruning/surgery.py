"""Removal of channels: a new, smaller network made of the same module classes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from rni_pl.copying import Parts
from rni_pl.pruning.dependency import DependencyGraph
from rni_pl.pruning.ops import layer_of

# Attributes that repeat the size of a parameter: which one, along which dimension.
REPEATS = {
    "in_features": ("weight", 1), "out_features": ("weight", 0), "num_features": ("weight", 0),
    "num_channels": ("weight", 0), "num_parameters": ("weight", 0), "embedding_dim": ("weight", 1),
    "input_size": ("weight_ih_l0", 1),
}  # fmt: skip
SAME = {"weight_v": "weight", "weight_orig": "weight", "running_mean": "weight"}
Masks = dict[int, Tensor]  # dimension -> which of its elements stay, bool


@dataclass
class Cut:
    """What is left of a network: of parameters and buffers that lose something, and of sizes.

    `places` has the indices of masks that were needed already.
    """

    left: dict[str, Masks] = field(default_factory=dict)
    sizes: dict[str, dict[str, Any]] = field(default_factory=dict)
    places: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, graph: DependencyGraph, keep: Tensor) -> "Cut":
        """`keep` says which dependency groups stay, bool, shape (groups,)."""
        cut, layers = cls(), dict[str, dict[str, Masks]]()
        masks: dict[int, tuple[Tensor, bool]] = {}  # most parameters hold what others hold
        for name, axes in graph.parameters():
            for groups in axes.values():
                if id(groups) not in masks:
                    masks[id(groups)] = keep[groups], bool(keep[groups].all())
            if not all(masks[id(groups)][1] for groups in axes.values()):
                cut.left[name] = {d: masks[id(groups)][0] for d, groups in axes.items()}
                layers.setdefault(layer_of(name), {}).setdefault(_role(name), cut.left[name])
        for layer, tensors in layers.items():
            cut.sizes[layer] = _sizes(graph.parts.modules[layer], tensors)
        for layer, channels in graph.layers.items():
            module, kept = graph.parts.modules[layer], keep[channels.outputs]
            if isinstance(module, nn.ConstantPad3d):
                front = int(kept[: module.padding[4]].sum())
                widths = (*module.padding[:4], front, int(kept.sum()) - front)
                cut.sizes[layer] = {"padding": widths}
            elif isinstance(module, nn.GroupNorm):
                alive = int(kept.view(module.num_groups, -1).any(1).sum())
                cut.sizes[layer] = {"num_channels": int(kept.sum()), "num_groups": alive}
        return cut

    def slice(self, name: str, tensor: Tensor) -> Tensor:
        """What is left of a parameter or buffer: itself if that is all."""
        for dim, mask in self.left.get(name, {}).items():
            if id(mask) not in self.places:
                self.places[id(mask)] = mask, mask.nonzero().flatten()
            tensor = tensor.index_select(dim, self.places[id(mask)][1].to(tensor.device))
        return tensor

    def resize(self, parts: Parts) -> Parts:
        """Give a copy's layers their new sizes."""
        for layer, values in self.sizes.items():
            for key, value in values.items():
                setattr(parts.modules[layer], key, value)
        return parts


def _role(name: str) -> str:
    """The name of a parameter within its layer; a parametrized weight's is that of the weight."""
    key = name.rpartition(".")[2]
    _, parametrized, rest = name.partition(".parametrizations.")
    if parametrized:
        return rest.partition(".")[0] if key in ("original", "original1") else name
    return SAME.get(key, key)


def _sizes(module: nn.Module, tensors: Mapping[str, Masks]) -> dict[str, Any]:
    """The attributes of a layer whose parameters are cut."""
    weight = tensors.get("weight", {})
    if isinstance(module, _ConvNd):
        return _conv_sizes(module, weight)
    sizes = {}
    for key, (name, dim) in REPEATS.items():
        mask = tensors.get(name, {}).get(dim)
        if mask is not None and vars(module).get(key) == len(mask):
            sizes[key] = int(mask.sum())
    return sizes


def _conv_sizes(module: _ConvNd, weight: Masks) -> dict[str, Any]:
    """The first dimension of the weight holds all groups, the second what one of them has."""
    transposed = isinstance(module, _ConvTransposeNd)
    one, other = module.out_channels, module.in_channels
    one, other = (other, one) if transposed else (one, other)
    groups = module.groups
    if 0 in weight:
        one = int(weight[0].sum())
        groups = int(weight[0].view(groups, -1).any(1).sum())
    other = groups * (int(weight[1].sum()) if 1 in weight else other // module.groups)
    inputs, outputs = (one, other) if transposed else (other, one)
    return {"in_channels": inputs, "out_channels": outputs, "groups": groups}


def remove(parts: Parts, cut: Cut) -> Parts:
    """A copy of a network without what is cut, on the same device and in the same modes.

    Large weights are sliced, never copied whole; the network given is not touched.
    """
    with torch.inference_mode(False), torch.no_grad():
        made = {name: _sliced(tensor, cut, name) for name, tensor in parts.tensors.items()}
        return cut.resize(parts.copy(made))


def _sliced(tensor: Tensor, cut: Cut, name: str) -> Tensor:
    data = tensor.detach()
    data = cut.slice(name, data) if name in cut.left else data.clone()
    if tensor.ndim == 4 and name in cut.left and not tensor.is_contiguous():
        data = data.contiguous(memory_format=torch.channels_last)
    if isinstance(tensor, nn.Parameter):
        new = nn.Parameter(data, requires_grad=tensor.requires_grad)
        vars(new).update(vars(tensor))
        return new
    return data
