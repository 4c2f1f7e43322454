"""Folding the constants that removed channels emit into what follows.

A removed channel of a BatchNorm with bias would, with its scale at 0, still emit the activation of
its bias, the same everywhere. What that adds to the next layer's output is measured on the example
batch, and goes into that layer's bias, or is taken off the running mean of the BatchNorm behind
it. This is exact where it is the same at every position; where padding (or a gate) makes
it vary, its mean is taken.
"""

import copy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from rni_pl import norm
from rni_pl.pruning.dependency import DependencyGraph

# Relative to the largest constant: what varies less is the same at every position.
EXACT = 1e-4
READERS = (_ConvNd, nn.Linear)


@dataclass
class Absorbed:
    """Layers by what became of the constants they no longer read.

    Attributes:
        exact: the constants were folded without loss.
        approximate: their mean was folded.
        lost: layer -> why nothing could be folded.
    """

    exact: list[str] = field(default_factory=list)
    approximate: list[str] = field(default_factory=list)
    lost: dict[str, str] = field(default_factory=dict)


@torch.no_grad()
def absorb_constants(pruned: nn.Module, graph: DependencyGraph, keep: Tensor) -> Absorbed:
    """Change biases and running means of `pruned`, in place; the graph's network is left as it is.

    `keep` says which dependency groups were kept, bool, shape (groups,).
    """
    absorbed = Absorbed()
    for name, emitted in _emissions(graph, keep).items():
        emitted = emitted[keep[graph.layers[name].outputs]]
        if not bool(emitted.any()):
            continue
        why_not = _fold(pruned, graph, name, emitted.mean(1))
        if why_not is not None:
            absorbed.lost[name] = why_not
            continue
        varies = float((emitted.amax(1) - emitted.amin(1)).max())
        exact = varies <= EXACT * float(emitted.abs().max())
        (absorbed.exact if exact else absorbed.approximate).append(name)
    return absorbed


def _emissions(graph: DependencyGraph, keep: Tensor) -> dict[str, Tensor]:
    """What removed channels, once their scale is 0, add to the layers that read them.

    Layer -> tensor of shape (output channels, positions of the whole batch, over all calls).
    """
    silenced = copy.deepcopy(graph.model).eval()
    for name in graph.scaled:
        norm.silence(silenced.get_submodule(name), ~keep[graph.layers[name].outputs])  # type: ignore[arg-type]
    found: dict[str, Tensor] = {}
    for name, layer in graph.layers.items():
        module = silenced.get_submodule(name)
        if isinstance(module, READERS) and layer.inputs is not None:
            removed = ~keep[layer.inputs]
            if bool(removed.any()):
                module.register_forward_pre_hook(_Reader(found, name, removed))
    silenced(*graph.example.args, **graph.example.kwargs)
    return found


class _Reader:
    """Notes what a layer would make of the removed channels only, its bias left out."""

    def __init__(self, found: dict[str, Tensor], name: str, removed: Tensor) -> None:
        self.found, self.name, self.removed = found, name, removed

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0]
        dim = x.ndim - 1 if isinstance(module, nn.Linear) else 1
        view = [-1 if d == dim else 1 for d in range(x.ndim)]
        removed = x * self.removed.to(x.device).view(view)
        made = module.forward(removed) - module.forward(torch.zeros_like(x))
        here = made.movedim(dim, 0).flatten(1)
        before = self.found.get(self.name, here[:, :0])  # of an earlier call of the same layer
        self.found[self.name] = torch.cat([before, here], 1)


def _fold(pruned: nn.Module, graph: DependencyGraph, name: str, constant: Tensor) -> str | None:
    """Add `constant`, shape (channels,), to what follows; why not, where there is no place."""
    layer = pruned.get_submodule(name)
    if isinstance(layer.bias, Tensor):
        layer.bias += constant
        return None
    behind = graph.norm_behind(name)
    mean = None if behind is None else pruned.get_submodule(behind).running_mean
    if not isinstance(mean, Tensor):
        return "it has neither a bias nor a BatchNorm right behind it"
    mean -= constant
    return None
