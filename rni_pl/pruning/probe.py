"""Trying out whether channels can be cut out of a layer with a forward pass of its own."""

import copy
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.func import functional_call

from rni_pl.pruning.modes import evaluating
from rni_pl.pruning.numbering import LayerChannels
from rni_pl.pruning.surgery import remove

PRECISION = 1e-5  # how far sums of float32 may be apart, of the largest

_tried: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def keeps_channels_apart(layer: nn.Module) -> bool:
    """Whether a layer with a forward pass of its own does without some channels as if they were 0.

    Not so, for one, a convolution that standardises its weight. Tried on noise, once for a layer.
    """
    if layer not in _tried:
        try:
            # Where float32 is exact enough: GPUs may calculate with fewer digits.
            twin = copy.deepcopy(layer).cpu().float().eval()
            with torch.no_grad():
                _tried[layer] = all(
                    _survives(twin, cut, parity) for cut in _cuts(twin) for parity in (0, 1)
                )
        except Exception:  # whatever its forward pass raises on noise
            _tried[layer] = False
    return _tried[layer]


def is_silent_at_zero(norm: nn.BatchNorm2d) -> bool:
    """Whether a norm layer with a forward pass of its own is constant at scale and bias 0.

    Not so where it scales by ``1 + weight``, for one.
    """
    zeros = {key: torch.zeros_like(value) for key, value in norm.named_parameters(recurse=False)}
    x = _noise(norm, norm.num_features)
    with torch.no_grad(), evaluating(norm):
        made = functional_call(norm, zeros, x)
    return bool((made == made[:1]).all())


def _cuts(layer: nn.Module) -> list[LayerChannels]:
    """Ways to number a layer's channels, of which the odd ones are kept, then the even ones."""
    if not isinstance(layer, nn.Conv2d | nn.Linear):
        return [LayerChannels(None, torch.arange(1, len(next(layer.parameters())) + 1))]
    outputs, inputs = layer.weight.shape[:2]  # the inputs of one group
    groups = getattr(layer, "groups", 1)
    rows, columns = torch.arange(1, outputs // groups + 1), torch.arange(1, inputs + 1)
    cuts = [LayerChannels(columns.repeat(groups), rows.repeat(groups))]
    if groups > 1:
        group = torch.arange(1, groups + 1)
        each = (group.repeat_interleave(n) for n in (len(columns), len(rows)))
        cuts.append(LayerChannels(*each))
    return cuts


def _survives(layer: nn.Module, cut: LayerChannels, parity: int) -> bool:
    numbers = cut.outputs if cut.inputs is None else cut.inputs
    keep = torch.arange(int(max(numbers.max(), cut.outputs.max())) + 1) % 2 == parity
    if not (bool(keep[numbers].any()) and bool(keep[cut.outputs].any())):
        return True  # nothing would be left to compare
    smaller = remove(nn.ModuleDict({"layer": layer}), {"layer": cut}, keep)["layer"]  # type: ignore[index]
    x = _noise(layer, len(numbers))
    x[:, ~keep[numbers]] = 0
    expected, found = layer(x)[:, keep[cut.outputs]], smaller(x[:, keep[numbers]])
    return bool((expected - found).abs().max() <= PRECISION * expected.abs().max())


def _noise(layer: nn.Module, channels: int) -> Tensor:
    """Two images with as many channels, large enough for the kernel."""
    extent = [1, 1]
    if isinstance(layer, nn.Conv2d):
        extent = [d * (k - 1) + 2 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    shape = [2, channels] if isinstance(layer, nn.Linear) else [2, channels, *extent]
    like = next(layer.parameters())
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return noise.to(like)
