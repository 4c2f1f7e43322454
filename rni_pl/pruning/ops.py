"""What each operation of a network does with channel numbers: one small handler a kind.

A handler takes the flow and the operation's arguments, channel numbers in place of activations,
and returns the channel numbers of the result. Operations that only move elements need no
handler: they run as they are. What is in no list here is unknown, and whatever it reads stays.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rni_pl.pruning import kinds
from rni_pl.pruning.numbering import (
    Unknown,
    channels,
    collapse,
    constant_along,
    first,
    fixed,
    join,
    map_tensors,
    off_zero,
    place,
    placed_alike,
    tensors_in,
)
from rni_pl.pruning.padding import constant_pad, pad

if TYPE_CHECKING:
    from rni_pl.pruning.flow import Flow


def run(flow: "Flow", args: tuple, kwargs: dict) -> Any:
    """The result of the flow's present node, on channel numbers."""
    node = flow.node
    if node.op == "placeholder":
        return fixed(flow.shapes[node])
    if node.op == "get_attr":
        return attribute(flow, str(node.target))
    if node.op == "output":
        flow.pin_all(args, "feeds the network's output")
        return args[0]
    if node.op == "call_module":
        return call_layer(flow, flow.modules[str(node.target)], args, kwargs)
    return call(flow, args, kwargs)


def call_layer(flow: "Flow", layer: nn.Module, args: tuple, kwargs: dict) -> Any:
    """A layer, by its class."""
    x = args[0] if args else next(iter(kwargs.values()))
    if kinds.has_hooks(layer):
        raise Unknown("has a forward hook or a forward pass of its own")
    if str(flow.node.target) in flow.known:
        return layer_with_channels(flow, layer, x)
    if isinstance(layer, kinds.CONSTANT_PADS):
        return constant_pad(flow, layer, x)
    if isinstance(layer, kinds.ELEMENTWISE_LAYERS):
        return x
    if isinstance(layer, kinds.POOLING_LAYERS):
        return pooling(flow, type(layer).__name__, x)
    if isinstance(layer, nn.ChannelShuffle):
        return shuffle(flow, x, layer.groups)
    if isinstance(layer, nn.Flatten | nn.Unflatten):
        return layer(x)
    raise Unknown(f"is not understood ({type(layer).__name__})")


def call(flow: "Flow", args: tuple, kwargs: dict) -> Any:
    """A function or method, by its name."""
    name = kinds.name_of(flow.node)
    operands = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
    if name in kinds.JOINS:
        return join(*args, **kwargs)
    if name in kinds.MOVES or name in kinds.SPLITS:
        return move(flow, name, args, kwargs)
    if not flow.node.all_input_nodes or not tensors_in((args, kwargs)):
        return constant(flow, args, kwargs)
    if name in kinds.NEW:
        return new(flow, args, kwargs)
    if len(operands) == 1:
        return call_on_one(flow, name, operands[0], args, kwargs)
    if len(operands) == 2:
        return call_on_two(flow, name, *operands)
    raise Unknown("is not understood")


def call_on_one(flow: "Flow", name: str, x: Tensor, args: tuple, kwargs: dict) -> Any:
    """A function of one tensor."""
    if name in kinds.WITH_NUMBERS and flow.sizes_are_computed:
        flow.hold_settings([v for v in (*args, *kwargs.values()) if not isinstance(v, Tensor)])
    if name in kinds.FOLLOWED or (name in kinds.DIVISIONS and x is args[0]):
        return x
    if name in kinds.ADDITIONS and len(args) == 2:
        return off_zero(x) if (args[0] if args[1] is x else args[1]) else x
    if name in kinds.POOLING:
        return pooling(flow, name, x)
    if name in kinds.REDUCTIONS:
        return reduction(flow, x, *args[1:], **kwargs)
    if name == "pad":
        return pad(flow, x, *args[1:], **kwargs)
    if name == "channel_shuffle":
        return shuffle(flow, x, *args[1:], **kwargs)
    raise Unknown("is not understood")


def call_on_two(flow: "Flow", name: str, a: Tensor, b: Tensor) -> Tensor:
    """A function of two tensors."""
    if name in kinds.ADDITIONS | kinds.EXTREMA:
        return meet(flow, a, b)
    if name in kinds.PRODUCTS or (name in kinds.DIVISIONS and not bool(collapse(b)[0].any())):
        return meet(flow, a, b, product=True)
    raise Unknown("is not understood")


# Layers with parameters.


def layer_with_channels(flow: "Flow", layer: nn.Module, x: Tensor) -> Tensor:
    """Convolutions, linear layers, and what has parameters for each channel."""
    name = str(flow.node.target)
    if isinstance(layer, nn.Conv2d):
        return convolution(flow, layer, x)
    if isinstance(layer, nn.Linear):
        outputs = flow.make(name, channels(x, -1), layer.out_features)
        return place(outputs, flow.shapes[flow.node], -1)
    if isinstance(layer, nn.PReLU) and layer.num_parameters == 1:
        return x
    vector = channels(x, 1)
    flow.pass_through(name, vector, scaled=kinds.is_scaled(layer))
    if kinds.is_scaled(layer):
        vector = vector.abs()
    elif isinstance(layer, kinds.BATCH_NORMS):
        flow.pin(vector[vector > 0], f"feeds {name}, which shifts it and has no scale that ranks")
    return place(vector, x.shape, 1)


def convolution(flow: "Flow", layer: nn.Conv2d, x: Tensor) -> Tensor:
    """Reads channels, makes new ones; a grouped convolution ties what its groups share."""
    inputs = channels(x, 1)
    outputs = flow.make(str(flow.node.target), inputs, layer.out_channels)
    if layer.groups > 1 and not flow.replaying:  # what is removed leaves the groups alike
        outputs = tie_groups(flow, layer, inputs, outputs)
    return place(outputs, flow.shapes[flow.node], 1)


def tie_groups(flow: "Flow", layer: nn.Conv2d, inputs: Tensor, outputs: Tensor) -> Tensor:
    """Tie the channels of a grouped convolution in whichever way leaves the smaller units.

    Either a group goes as a whole, inputs and outputs (a depthwise convolution is the case of one
    channel a group), or every group loses the same places among its inputs and its outputs.
    """
    by_group, by_group_out = inputs.view(layer.groups, -1), outputs.view(layer.groups, -1)
    if by_group.size(1) > layer.groups:
        flow.tie(by_group[:1].expand_as(by_group), by_group)
        flow.tie(by_group_out[:1].expand_as(by_group_out), by_group_out)
        return outputs
    if by_group.size(1) > 1:
        flow.tie(by_group[:, :1].expand_as(by_group), by_group)
    flow.tie(by_group[:, :1].expand_as(by_group_out), by_group_out)
    # Where all that a group reads has been scaled and it adds no bias, its outputs are too.
    scaled = (by_group > 0).all(1, keepdim=True) & (layer.bias is None)
    return torch.where(scaled, by_group_out.abs(), by_group_out).flatten()


# Operations without parameters.


def meet(flow: "Flow", a: Tensor, b: Tensor, product: bool = False) -> Tensor:
    """Two tensors meet element by element: their channels go together.

    A sum has been scaled by a BatchNorm where both terms have, a product where one factor has.
    """
    vectors = placed_alike(a, b)
    if vectors is not None:  # nearly always
        met = _met(flow, *vectors, product)
        return place(met, torch.broadcast_shapes(a.shape, b.shape), dim=a.placed[1])  # type: ignore[attr-defined]
    full_a, full_b = torch.broadcast_tensors(a, b)
    if _spread(a, full_b):
        return _over_channels(flow, a, full_b, product)
    if _spread(b, full_a):
        return _over_channels(flow, b, full_a, product)
    one, other = collapse(full_a, full_b)
    return _met(flow, one, other, product).expand_as(full_a)


def _met(flow: "Flow", one: Tensor, other: Tensor, product: bool) -> Tensor:
    flow.tie(one, other, coupled=not product)
    scaled = (one > 0) | (other > 0) if product else (one >= 0) & (other >= 0)
    return torch.where(scaled, one.abs(), -one.abs())


def _spread(small: Tensor, big: Tensor) -> bool:
    """Whether broadcasting repeats `small` over different channels of `big`."""
    offset = big.ndim - small.ndim
    repeated = [d for d in range(big.ndim) if d < offset or small.size(d - offset) < big.size(d)]
    return any(not constant_along(big, d) for d in repeated)


def _over_channels(flow: "Flow", one: Tensor, many: Tensor, product: bool) -> Tensor:
    """One channel (a spatial gate, a parameter) meets many: it stays, they are free to go."""
    flow.pin_all(one, f"is spread over other channels in {flow.place_name}")
    # A parameter is a function's: what it makes of 0 is up to it, as with sigmoid.
    followed = product or flow.adds_parameter
    return many if followed else off_zero(many)


def reduction(
    flow: "Flow", x: Tensor, dim: Any = None, keepdim: bool = False, **others: Any
) -> Tensor:
    """A mean or sum over dimensions along which the channel does not change."""
    dim = others.get("axis", dim)
    if dim is None:
        raise Unknown("mixes channels")
    dims = sorted((d % x.ndim for d in ([dim] if isinstance(dim, int) else dim)), reverse=True)
    flow.hold_settings([x.size(d) for d in dims])  # a sum grows with what is summed
    for d in dims:
        x = first(x, d)
        x = x if keepdim else x.squeeze(d)
    return x


def pooling(flow: "Flow", name: str, x: Tensor) -> Any:
    """Pooling and resizing work within each channel."""
    rank = kinds.spatial_rank(name)
    if rank is not None and x.ndim != rank + 2:
        raise Unknown("is not given a batch of images, and works on the channels")
    vector, shape = channels(x, 1), flow.shapes[flow.node]
    if isinstance(shape, torch.Size):
        return place(vector, shape, 1)
    return tuple(place(vector, each, 1) for each in shape)  # maxima and where they were


def shuffle(flow: "Flow", x: Tensor, groups: int) -> Tensor:
    """The first channels of all groups, then the second ones, and so on."""
    lanes = channels(x, 1).view(groups, -1)
    flow.tie(lanes[:1].expand_as(lanes), lanes)
    return place(lanes.t().flatten(), x.shape, 1)


def move(flow: "Flow", name: str, args: tuple, kwargs: dict) -> Any:
    """Views, splits and the like move channel numbers as they move activations."""
    before = args[0]
    if name == "getitem" and tensors_in(args[1:]):
        raise Unknown("picks elements by another tensor")
    if name == "split" and not flow.sizes_are_computed:
        flow.pin_all(before, f"is split at fixed sizes in {flow.place_name}")
    if name == "view" and isinstance(before, Tensor):
        return regroup(flow, before, before.reshape(*args[1:], **kwargs))
    result = native(flow, args, kwargs)
    if name in kinds.SPLITS and len({part.shape for part in result}) == 1:
        for part in result[1:]:  # equal parts stay equal when they lose the same places
            one, other = collapse(result[0], part)
            flow.tie(one, other)
    return regroup(flow, before, result)


def regroup(flow: "Flow", before: Any, after: Any) -> Any:
    """Tie the lanes of channels that a view splits in two dimensions, as a channel shuffle does."""
    if not isinstance(before, Tensor) or not isinstance(after, Tensor):
        return after
    (n, *channels), shape = before.shape, after.shape
    if after.ndim == before.ndim + 1 and [n, shape[1] * shape[2], *shape[3:]] == [n, *channels]:
        (lanes,) = collapse(after)
        flow.tie(lanes[:, :1].expand_as(lanes), lanes)
    return after


def attribute(flow: "Flow", name: str) -> Any:
    """A parameter used outside its layer: what it meets, and its layer, stay whole."""
    if not all(kinds.asks_for_kind(user) for user in flow.node.users):
        flow.lock(
            name.rpartition(".")[0], "whose parameters or buffers the network's own code reads"
        )
    return fixed(flow.shapes[flow.node])


def constant(flow: "Flow", args: tuple, kwargs: dict) -> Any:
    """Arithmetic on sizes, and new tensors, which hold no channels and stay as they are."""
    result = native(flow, args, kwargs)
    if tensors_in(result):
        flow.hold_settings((args, kwargs))
    return map_tensors(result, lambda x: fixed(x.shape))


def new(flow: "Flow", args: tuple, kwargs: dict) -> Tensor:
    """A new tensor of the kind of another, of which it has no channels."""
    flow.hold_settings((args[1:], kwargs))
    return fixed(native(flow, args, kwargs).shape)


def native(flow: "Flow", args: tuple, kwargs: dict) -> Any:
    """Run the operation itself."""
    target: Any = flow.node.target
    if flow.node.op != "call_method":
        return target(*args, **kwargs)
    if target.endswith("_"):  # may move what it is given
        vars(args[0]).pop("placed", None)
    return getattr(args[0], target)(*args[1:], **kwargs)
