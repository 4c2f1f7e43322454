"""Carrying a trained network's BatchNorm over into SigBN, so that it computes the same."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from rni_pl.norm import SigmoidBatchNorm, convert_batchnorm, scaled_norms
from rni_pl.pruning import layers, moves
from rni_pl.pruning.channels import LayerChannels
from rni_pl.pruning.dependency import DependencyGraph
from rni_pl.pruning.ops import RULES, Op
from rni_pl.pruning.trace import trace

ROOM = 0.9  # the scale that a group's largest comes down to, where its readers can make up for it
TOP = 0.995  # the largest scale otherwise
BOTTOM = 1e-6  # the smallest

# Operations that pass a positive factor of their input on, by their rules and by their names.
HOMOGENEOUS_RULES = (
    layers.convolution, layers.linear, layers.batch_norm, layers.channelwise,
    moves.move, moves.join, moves.spatial,
)  # fmt: skip
HOMOGENEOUS = {
    "relu", "leaky_relu", "neg", "dropout", "feature_dropout", "clone", "contiguous", "mean", "sum",
    "amax", "amin",
}  # fmt: skip


@dataclass(frozen=True)
class Carried:
    """How much of the trained BatchNorm layers their SigBNs could take over.

    Attributes:
        channels: channels carried over.
        above: those whose scale was out of a sigmoid's reach (over 0.9).
        clamped: of these, those cut down to 0.995, since what reads them could not make up for it.
        lost: negative scales that could not be turned, now near 0.
    """

    channels: int
    above: int
    clamped: int
    lost: int

    def describe(self) -> str:
        """In one line."""
        return (
            f"{self.channels} BatchNorm channels became SigBN; {self.above} scales were over "
            f"{ROOM}, of which {self.clamped} had to be cut down to {TOP}; {self.lost} negative "
            "ones could not be turned"
        )


@torch.no_grad()
def to_sigbn(model: nn.Module, example: Tensor) -> tuple[nn.Module, Carried]:
    """A copy with SigBN in place of BatchNorm that computes the same in evaluation, where it can.

    Exact in evaluation mode: a scale above 1 moves into the layers that read the channel (where
    only positively homogeneous operations lie between), a negative sign into the convolution in
    front, and a bias b into the running mean, ``mean - b * std / scale``. In training mode
    the batch's own mean takes the place of the running one, so that the biases are gone: a SigBN
    has none.
    """
    model = copy.deepcopy(model).eval()
    graph = trace(model, example)
    norms: dict[str, Any] = dict(scaled_norms(model))
    lost = sum(_turn_signs(model, graph, name, norm) for name, norm in norms.items())
    above = sum(int((norm.weight > ROOM).sum()) for norm in norms.values())
    _share_scales(model, graph, {name: norms[name] for name in graph.scaled})
    clamped = sum(int((norm.weight > TOP).sum()) for norm in norms.values())
    trained = {name: copy.deepcopy(norm) for name, norm in norms.items()}
    with torch.random.fork_rng(devices=[]):
        model = convert_batchnorm(model)
    for name, norm in trained.items():
        _carry(norm, model.get_submodule(name))
    channels = sum(norm.num_features for norm in norms.values())
    return model, Carried(channels, above, clamped, lost)


def _turn_signs(model: nn.Module, graph: DependencyGraph, name: str, norm: Any) -> int:
    """Make scales positive by turning the convolution in front; how many could not be."""
    negative = norm.weight < 0
    if not bool(negative.any()):
        return 0
    in_front = graph.maker_of(name)
    conv: Any = None if in_front is None else model.get_submodule(in_front)
    if conv is None or isinstance(conv, _ConvTransposeNd):  # whose rows are inputs
        return int(negative.sum())
    for tensor in (conv.weight, conv.bias, norm.running_mean, norm.weight):
        if tensor is not None:
            tensor[negative] *= -1
    return 0


def _share_scales(model: nn.Module, graph: DependencyGraph, norms: dict[str, Any]) -> None:
    """Divide each group's scales so that the largest is at `ROOM`; its readers multiply.

    Where a norm layer reads what another has scaled, its running statistics would not fit any more.
    """
    largest = torch.zeros(graph.size)
    for name, norm in norms.items():
        groups = graph.layers[name].outputs
        largest.scatter_reduce_(0, groups, norm.weight.float().cpu(), "amax")
    factor = (largest / ROOM).clamp(min=1)
    factor[[0, *graph.reasons]] = 1
    factor[graph.groups_through(lambda op: not _homogeneous(op))] = 1
    for name in norms:
        if graph.maker_of(name) is None:  # it may read what another has scaled: DenseNets
            factor[graph.layers[name].outputs] = 1
    for name, norm in norms.items():
        mine = factor[graph.layers[name].outputs].to(norm.weight)
        norm.weight /= mine
        if norm.bias is not None:
            norm.bias /= mine
    for name, layer in graph.layers.items():
        module: Any = model.get_submodule(name)
        if layer.inputs is None or _hands_on(graph, name, layer):
            continue
        columns = factor[layer.inputs].to(module.weight)
        if isinstance(module, _ConvTransposeNd):
            module.weight *= columns.view(-1, *[1] * (module.weight.ndim - 1))
        elif isinstance(module, _ConvNd):
            # A grouped convolution's weight has the inputs of the output's own group.
            kernel = [1] * (module.weight.ndim - 2)
            by_group = columns.view(module.groups, 1, -1, *kernel)
            grouped = module.weight.view(module.groups, -1, *module.weight.shape[1:])
            grouped *= by_group
        else:
            module.weight *= columns


def _hands_on(graph: DependencyGraph, name: str, layer: LayerChannels) -> bool:
    """Whether a layer makes the groups that it reads and no norm layer takes their factor out.

    Depthwise convolutions in front of a pointwise one: it is that one that multiplies.
    """
    same = bool(torch.isin(layer.outputs, layer.inputs).all())  # type: ignore[arg-type]
    return same and graph.norm_behind(name) is None


def _homogeneous(op: Op) -> bool:
    """Whether an operation passes a positive factor of its input on to its output."""
    if not op.activations:
        return True  # it makes a scale, for one
    if op.name in ("add", "sub"):
        return len(op.inputs) == 2 and all(x and not x.name for x in op.inputs)
    if op.name in ("pad", "constant_pad_nd"):
        return op.settings[-1] in (None, 0, 0.0, "constant")
    return op.name in HOMOGENEOUS or RULES.get(op.name) in HOMOGENEOUS_RULES


def _carry(norm: Any, sigmoid: Any) -> None:
    """Scale, bias and statistics of one trained BatchNorm."""
    assert isinstance(sigmoid, SigmoidBatchNorm)
    scale = norm.weight.clamp(BOTTOM, TOP)
    sigmoid.weight.copy_(torch.logit(scale))
    if norm.running_var is None:  # the batch's own mean then takes every bias out, as in training
        return
    std = torch.sqrt(norm.running_var + norm.eps)
    sigmoid.running_mean.copy_(norm.running_mean - norm.bias * std / scale)  # type: ignore[union-attr]
