"""Removal of channels: a new, smaller network made of the same module classes."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from rni_pl.pruning.copying import Parts
from rni_pl.pruning.dependency import DependencyGraph
from rni_pl.pruning.ops import layer_of

# Attributes that repeat the size of a parameter: which one, along which dimension.
REPEATS = {
    "in_features": ("weight", 1), "out_features": ("weight", 0), "num_features": ("weight", 0),
    "num_channels": ("weight", 0), "num_parameters": ("weight", 0), "embedding_dim": ("weight", 1),
    "input_size": ("weight_ih_l0", 1),
}  # fmt: skip
SAME = {"weight_v": "weight", "weight_orig": "weight", "running_mean": "weight"}


@dataclass(eq=False)
class Mask:
    """Which channels of a dimension stay.

    Attributes:
        kept: bool, shape (channels,).
        count: how many stay.
    """

    kept: Tensor
    count: int

    @functools.cached_property
    def places(self) -> Tensor:
        """Where those are that stay, shape (count,)."""
        return self.kept.nonzero().flatten()

    def groups(self, count: int) -> int:
        """How many of `count` groups of equal size keep any."""
        return int(self.kept.view(count, -1).any(1).sum()) if count > 1 else count


Masks = dict[int, Mask]  # by dimension


@dataclass
class Cut:
    """What is left of a network: of parameters and buffers that lose something, and of sizes."""

    left: dict[str, Masks] = field(default_factory=dict)
    sizes: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, graph: DependencyGraph, keep: Tensor) -> "Cut":
        """`keep` says which dependency groups stay, bool, shape (groups,)."""
        cut, layers = cls(), dict[str, dict[str, Masks]]()
        masks: dict[int, Mask] = {}  # most parameters hold what others hold
        for name, axes in graph.parameters():
            for groups in axes.values():
                if id(groups) not in masks:
                    kept = keep[groups]
                    masks[id(groups)] = Mask(kept, int(kept.sum()))
            if any(masks[id(groups)].count < len(groups) for groups in axes.values()):
                cut.left[name] = {d: masks[id(groups)] for d, groups in axes.items()}
                layers.setdefault(layer_of(name), {}).setdefault(_role(name), cut.left[name])
        for layer, tensors in layers.items():
            cut.sizes[layer] = _sizes(graph.parts.modules[layer], tensors)
        for layer, channels in graph.layers.items():
            module = graph.parts.modules[layer]
            if isinstance(module, nn.ConstantPad3d):
                kept = keep[channels.outputs]
                front = int(kept[: module.padding[4]].sum())
                widths = (*module.padding[:4], front, int(kept.sum()) - front)
                cut.sizes[layer] = {"padding": widths}
            elif isinstance(module, nn.GroupNorm):
                kept = keep[channels.outputs]
                mask = Mask(kept, int(kept.sum()))
                alive = mask.groups(module.num_groups)
                cut.sizes[layer] = {"num_channels": mask.count, "num_groups": alive}
        return cut

    def shape(self, name: str, tensor: Tensor) -> list[int]:
        """The size of what is left of a parameter or buffer."""
        masks = self.left.get(name, {})
        return [masks[d].count if d in masks else n for d, n in enumerate(tensor.shape)]

    def slice(self, name: str, tensor: Tensor) -> Tensor:
        """What is left of a parameter or buffer: itself if that is all."""
        for dim, mask in self.left.get(name, {}).items():
            if mask.count < len(mask.kept):
                tensor = tensor.index_select(dim, mask.places.to(tensor.device))
        return tensor

    def tensors(self, parts: Parts) -> dict[str, Tensor]:
        """What is left of all parameters and buffers; large ones are sliced, never copied whole."""
        with torch.inference_mode(False), torch.no_grad():
            return {name: self._copied(name, tensor) for name, tensor in parts.tensors.items()}

    def _copied(self, name: str, tensor: Tensor) -> Tensor:
        data = tensor.detach()
        data = self.slice(name, data) if name in self.left else data.clone()
        if tensor.ndim == 4 and name in self.left and not tensor.is_contiguous():
            data = data.contiguous(memory_format=torch.channels_last)
        if isinstance(tensor, nn.Parameter):
            new = nn.Parameter(data, requires_grad=tensor.requires_grad)
            vars(new).update(vars(tensor))
            return new
        return data

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
        if mask is not None and vars(module).get(key) == len(mask.kept):
            sizes[key] = mask.count
    return sizes


def _conv_sizes(module: _ConvNd, weight: Masks) -> dict[str, Any]:
    """The first dimension of the weight holds all groups, the second what one of them has."""
    transposed = isinstance(module, _ConvTransposeNd)
    one, other = module.out_channels, module.in_channels
    one, other = (other, one) if transposed else (one, other)
    groups = module.groups
    if 0 in weight:
        one, groups = weight[0].count, weight[0].groups(groups)
    other = groups * (weight[1].count if 1 in weight else other // module.groups)
    inputs, outputs = (one, other) if transposed else (other, one)
    return {"in_channels": inputs, "out_channels": outputs, "groups": groups}


def remove(parts: Parts, cut: Cut, tensors: Mapping[str, Tensor] | None = None) -> Parts:
    """A copy of a network without what is cut, on the same device and in the same modes.

    `tensors` are what is left of parameters and buffers, where that is known already. The network
    given is not touched.
    """
    with torch.inference_mode(False), torch.no_grad():
        made = cut.tensors(parts) if tensors is None else tensors
        return cut.resize(parts.copy(made))
