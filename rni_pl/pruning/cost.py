"""What a network costs, measured, and what it would cost with any choice of channels."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from rni_pl.pruning.graph import ChannelGraph, LayerChannels
from rni_pl.pruning.modes import evaluating
from rni_pl.pruning.numbering import map_tensors, tensors_in


def parameter_count(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in model.parameters())


def macs(model: nn.Module, image_shape: Sequence[int]) -> int:
    """Multiply-accumulates of one image of shape (channels, H, W), by torch's own counter."""
    like = next(model.parameters())
    return macs_on(model, (torch.zeros(1, *image_shape, device=like.device, dtype=like.dtype),))


def macs_on(model: nn.Module, inputs: tuple[Any, ...]) -> int:
    """Multiply-accumulates of one image, with the arguments that the forward pass takes.

    The first tensor among them is a batch of images, or of what goes with one image each.
    """
    from torch.utils.flop_counter import FlopCounterMode

    like = next(model.parameters())
    inputs = map_tensors(
        inputs, lambda x: x.to(like) if x.is_floating_point() else x.to(like.device)
    )
    counter = FlopCounterMode(display=False, custom_mapping=RECURRENT)
    with torch.no_grad(), evaluating(model), _attention_in_products(), counter:
        model(*inputs)
    return counter.get_total_flops() // 2 // len(tensors_in(inputs)[0])


def _lstm_on_cpu(inputs: torch.Size, w: torch.Size, u: torch.Size, *_: Any, **__: Any) -> int:
    """Flops of one layer and direction: the weights of inputs and of states, in every step."""
    return 2 * inputs[:-1].numel() * (w.numel() + u.numel())


def _on_gpu(inputs: torch.Size, weights: Sequence[torch.Size], *_: Any, **__: Any) -> int:
    """Flops of all layers of an RNN, whose weights come with their biases."""
    return 2 * inputs[:-1].numel() * sum(size.numel() for size in weights if len(size) == 2)


# Recurrent layers that are computed in one go, which the counter does not know.
RECURRENT = {torch.ops.aten.mkldnn_rnn_layer: _lstm_on_cpu, torch.ops.aten._cudnn_rnn: _on_gpu}


@contextmanager
def _attention_in_products() -> Iterator[None]:
    """Attention as the products that the counter knows, not in one go."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class CostModel:
    """Parameters and multiply-accumulates as functions of the units kept.

    Covers the layers of the channel graph; whatever else a network has (attention products, free
    parameters) does not change with the channels and is left out. All layers are counted at once.
    """

    def __init__(self, model: nn.Module, graph: ChannelGraph) -> None:
        layers = [_Layer.of(model.get_submodule(n), c) for n, c in graph.layers.items()]
        self._outputs = _Counter([layer.outputs for layer in layers])
        self._inputs = _Counter([layer.inputs for layer in layers])
        groups = [group for layer in layers for group in layer.inputs_by_group]
        self._group_inputs = _Counter(groups)
        owner = [i for i, layer in enumerate(layers) for _ in layer.inputs_by_group]
        self._owner = torch.tensor(owner, dtype=torch.long)
        self._per_weight = torch.tensor([layer.per_weight for layer in layers])
        self._per_output = torch.tensor([layer.per_output for layer in layers])
        self._positions = torch.tensor([graph.positions.get(n, 0) for n in graph.layers])

    def params(self, keep: Tensor) -> int:
        """Parameters of the layers with the units that `keep` (bool, shape (units,)) marks."""
        outputs = self._outputs(keep)
        return int((self._weights(keep, outputs) + self._per_output * outputs).sum())

    def macs(self, keep: Tensor) -> int:
        """Multiply-accumulates of one image with the units that `keep` marks."""
        return int((self._weights(keep, self._outputs(keep)) * self._positions).sum())

    def _weights(self, keep: Tensor, outputs: Tensor) -> Tensor:
        """Entries of each layer's weight: kernel size x outputs x inputs of one group."""
        alive = (self._group_inputs(keep) > 0).long()
        groups = torch.zeros_like(outputs).index_add_(0, self._owner, alive).clamp_(min=1)
        return self._per_weight * outputs * (self._inputs(keep) // groups)


class _Layer:
    """One layer's part of the counts: `per_weight` entries per pair of channels, and so on."""

    def __init__(self, inputs: Tensor, outputs: Tensor, groups: int) -> None:
        self.inputs, self.outputs = inputs, outputs
        self.inputs_by_group = list(inputs.view(groups, -1)) if groups > 1 else []
        self.per_weight = 0
        self.per_output = 0

    @classmethod
    def of(cls, module: nn.Module, channels: LayerChannels) -> "_Layer":
        none = torch.zeros(0, dtype=torch.long)
        inputs = none if channels.inputs is None else channels.inputs
        layer = cls(inputs, channels.outputs, getattr(module, "groups", 1))
        parameters = dict(module.named_parameters(recurse=False))
        if channels.inputs is not None and "weight" in parameters:
            weight = parameters.pop("weight")
            layer.per_weight = weight[0, 0].numel()
        layer.per_output = len(parameters)
        return layer


class _Counter:
    """Counts, for many lists of units at once, how many of each are kept."""

    def __init__(self, lists: list[Tensor]) -> None:
        self.units = torch.cat(lists) if lists else torch.zeros(0, dtype=torch.long)
        sizes = torch.tensor([len(units) for units in lists], dtype=torch.long)
        self.owner = torch.repeat_interleave(torch.arange(len(lists)), sizes)
        self.count = len(lists)

    def __call__(self, keep: Tensor) -> Tensor:
        counts = torch.zeros(self.count, dtype=torch.long)
        return counts.index_add_(0, self.owner, keep[self.units].long())
