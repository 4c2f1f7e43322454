"""The layers that the engine knows, by class."""

from collections.abc import Iterable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from rni_pl.norm import SigmoidBatchNorm2d, SigmoidBatchNormAct2d
from rni_pl.pruning.numbering import LayerChannels
from rni_pl.pruning.surgery import remove

ELEMENTWISE = (
    nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.SiLU, nn.GELU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid,
    nn.Tanh, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.Mish, nn.Softplus, nn.Softsign,
    nn.LogSigmoid, nn.Tanhshrink, nn.Softshrink, nn.Hardshrink, nn.Threshold, nn.RReLU, nn.Identity,
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout,
)  # fmt: skip
POOLING = (
    nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.LPPool2d,
    nn.FractionalMaxPool2d, nn.Upsample, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d,
)  # fmt: skip
CONSTANT_PADS = (nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
WITH_CHANNELS = (nn.Conv2d, nn.Linear, nn.PReLU, *BATCH_NORMS)

TENSORS = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
FORWARDS = {kind.forward for kind in (*WITH_CHANNELS, SigmoidBatchNorm2d, SigmoidBatchNormAct2d)}
TIMM_FORWARDS = {"timm.layers.norm_act.BatchNormAct2d", "timm.layers.conv2d_same.Conv2dSame"}


def is_known(layer: nn.Module) -> bool:
    """Whether channels can be cut out of `layer`, whatever class it derives from."""
    return (
        isinstance(layer, WITH_CHANNELS)
        and not has_hooks(layer)
        and layer._parameters.keys() | layer._buffers.keys() <= TENSORS
        and not (layer._modules and _holds_tensors(layer.children()))
        and (_has_a_forward_we_know(layer) or keeps_channels_apart(layer))
    )


def _holds_tensors(children: Iterable[nn.Module]) -> bool:
    return any(m._parameters or m._buffers for child in children for m in child.modules())


def _has_a_forward_we_know(layer: nn.Module) -> bool:
    kind = type(layer)
    return kind.forward in FORWARDS or f"{kind.__module__}.{kind.__qualname__}" in TIMM_FORWARDS


def has_hooks(layer: nn.Module) -> bool:
    """Whether a hook could change what a layer reads or makes."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks)


def is_scaled(layer: nn.Module) -> bool:
    """Whether it is a BatchNorm whose scales rank its channels."""
    return isinstance(layer, nn.BatchNorm2d) and layer.affine


_tried: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def keeps_channels_apart(layer: nn.Module) -> bool:
    """Whether a layer with a forward pass of its own does without some channels as if they were 0.

    Not so, for one, a convolution that standardises its weight. Tried on noise, once for a layer.
    """
    if layer not in _tried:
        was_training = layer.training
        try:
            with torch.no_grad():
                _tried[layer] = all(_survives(layer.eval(), cut) for cut in _cuts(layer))
        except Exception:  # whatever its forward pass raises on noise
            _tried[layer] = False
        finally:
            layer.train(was_training)
    return _tried[layer]


def _cuts(layer: nn.Module) -> list[LayerChannels]:
    """Ways to number a layer's channels, of which those with odd numbers are kept."""
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


def _survives(layer: nn.Module, cut: LayerChannels) -> bool:
    numbers = cut.outputs if cut.inputs is None else cut.inputs
    keep = torch.arange(int(max(numbers.max(), cut.outputs.max())) + 1) % 2 == 1
    smaller = remove(nn.ModuleDict({"layer": layer}), {"layer": cut}, keep)["layer"]  # type: ignore[index]
    x = _noise(layer, len(numbers))
    x[:, ~keep[numbers]] = 0
    expected, found = layer(x)[:, keep[cut.outputs]], smaller(x[:, keep[numbers]])
    return torch.allclose(expected, found, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def _noise(layer: nn.Module, channels: int) -> Tensor:
    """Two images with as many channels, large enough for the kernel."""
    extent = [1, 1]
    if isinstance(layer, nn.Conv2d):
        extent = [d * (k - 1) + 2 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    shape = [2, channels] if isinstance(layer, nn.Linear) else [2, channels, *extent]
    like = next(layer.parameters())
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return noise.to(like)
