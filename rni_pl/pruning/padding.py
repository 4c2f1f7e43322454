"""Padding, which may add channels."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rni_pl.pruning.numbering import Unknown, channels, off_zero, place

if TYPE_CHECKING:
    from rni_pl.pruning.flow import Flow


def constant_pad(flow: "Flow", layer: Any, x: Tensor) -> Tensor:
    """Constant channels in front and behind are channels that the layer makes."""
    front, back = _channel_padding(layer.padding, x)
    if min(front, back) < 0:
        raise Unknown("crops channels")
    if front + back and not isinstance(layer, nn.ConstantPad3d):
        raise Unknown("pads channels")
    if not front + back:
        return pad(flow, x, layer.padding, value=layer.value)
    vector = channels(x, 1)
    new = flow.make(str(flow.node.target), None, front + back)
    new = new.abs() if layer.value == 0 else new  # zero, as a channel with scale 0 would be
    split = int((new.abs() < flow.layers[str(flow.node.target)].outputs[0] + front).sum())
    return place(torch.cat([new[:split], vector, new[split:]]), flow.shapes[flow.node], 1)


def pad(
    flow: "Flow", x: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None
) -> Tensor:
    """A functional pad; new channels cannot be removed, their number stands in the code."""
    on_channels = _channel_padding(pad, x)
    if mode != "constant" and any(on_channels):
        raise Unknown("pads channels with other than a constant")
    vector = torch.nn.functional.pad(channels(x, 1), on_channels)
    padded = place(vector, flow.shapes[flow.node], 1)
    return off_zero(padded) if value else padded


def _channel_padding(widths: Sequence[int], x: Tensor) -> tuple[int, int]:
    if len(widths) > 2 * (x.ndim - 1):
        raise Unknown("pads the batch dimension")
    front, back = tuple(widths)[2 * (x.ndim - 2) :] or (0, 0)
    return front, back
