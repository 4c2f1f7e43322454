"""What each operation of a network does with channel numbers: one small handler a kind.

A handler takes the flow and the operation's arguments, channel numbers in place of activations,
and returns the channel numbers of the result. Operations that only move elements need no
handler: they run as they are. What is in no list here is unknown, and whatever it reads stays.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from rni_pl.pruning.numbering import (
    Unknown,
    channels,
    collapse,
    collapse_both,
    constant_along,
    first,
    fixed,
    holds_tensors,
    place,
    unfolds,
)

if TYPE_CHECKING:
    from rni_pl.pruning.flow import Flow


# Operations by the name of the function or method; in-place forms end in an underscore.
ELEMENTWISE = {
    "relu", "relu6", "hardtanh", "silu", "gelu", "hardswish", "hardsigmoid", "sigmoid", "tanh",
    "leaky_relu", "elu", "selu", "celu", "mish", "softplus", "clamp", "clamp_min", "dropout",
    "dropout2d", "feature_dropout", "alpha_dropout", "neg", "abs", "exp", "sqrt", "rsqrt", "square",
    "pow", "contiguous", "clone", "detach", "float", "half", "bfloat16", "to", "type", "type_as",
    "stochastic_depth", "drop_path",
}  # fmt: skip
POOLING = {
    "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "lp_pool2d",
    "interpolate", "upsample", "boolean_dispatch", "max_pool2d_with_indices",
    "adaptive_max_pool2d_with_indices",
}  # fmt: skip
ADDITIONS = {"add", "iadd", "sub", "isub", "rsub", "maximum", "minimum"}
PRODUCTS = {"mul", "imul"}
DIVISIONS = {"div", "truediv", "itruediv", "floordiv", "mod"}
REDUCTIONS = {"mean", "sum", "amax", "amin"}
MOVES = {
    "view", "reshape", "flatten", "unflatten", "permute", "transpose", "swapaxes", "movedim", "t",
    "squeeze", "unsqueeze", "expand", "expand_as", "view_as", "reshape_as", "unbind", "narrow",
    "select", "cat", "concat", "concatenate", "stack", "getitem", "size", "getattr", "dim",
    "ndimension", "numel", "flip", "roll",
}  # fmt: skip
SPLITS = {"chunk", "split", "tensor_split"}

ELEMENTWISE_MODULES = (
    nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.SiLU, nn.GELU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid,
    nn.Tanh, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.Mish, nn.Softplus, nn.Identity, nn.Dropout,
    nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout,
)  # fmt: skip
POOLING_MODULES = (
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.LPPool2d,
    nn.Upsample, nn.ReflectionPad2d, nn.ReplicationPad2d,
)  # fmt: skip
CONSTANT_PADS = (nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def is_known(module: nn.Module) -> bool:
    """Whether the engine handles `module` as a whole, whatever class of layer it derives from."""
    return isinstance(module, (nn.Conv2d, nn.Linear, nn.PReLU, *BATCH_NORMS)) and {
        name for name, _ in module.named_parameters()
    } <= {"weight", "bias"}


def run(flow: "Flow", args: tuple, kwargs: dict) -> Any:
    """The result of the flow's present node, on channel numbers."""
    node = flow.node
    if node.op == "placeholder":
        return flow.placeholder(node.target, args, kwargs)
    if node.op == "get_attr":
        return attribute(flow, str(node.target))
    if node.op == "output":
        flow.pin_all(args, "feeds the network's output")
        return args[0]
    if node.op == "call_module":
        return call_layer(flow, flow.fetch_attr(str(node.target)), args, kwargs)
    return call(flow, args, kwargs)


def call_layer(flow: "Flow", layer: nn.Module, args: tuple, kwargs: dict) -> Any:
    """A layer, by its class."""
    x = args[0] if args else next(iter(kwargs.values()))
    if isinstance(layer, nn.Conv2d) and is_known(layer):
        return convolution(flow, layer, x)
    if isinstance(layer, nn.Linear) and is_known(layer):
        return linear(flow, layer, x)
    if isinstance(layer, (*BATCH_NORMS, nn.PReLU)) and is_known(layer):
        return per_channel_layer(flow, layer, x)
    if isinstance(layer, CONSTANT_PADS):
        return constant_pad(flow, layer, x)
    if isinstance(layer, ELEMENTWISE_MODULES):
        return x
    if isinstance(layer, POOLING_MODULES):
        return pooling(flow, x)
    if isinstance(layer, nn.Flatten | nn.Unflatten):
        return layer(x)
    raise Unknown(f"is not understood ({type(layer).__name__})")


def call(flow: "Flow", args: tuple, kwargs: dict) -> Any:
    """A function or method, by its name."""
    target = flow.node.target
    name = (target if isinstance(target, str) else target.__name__).rstrip("_")
    operands = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
    if name in MOVES | SPLITS:
        return move(flow, name, args, kwargs)
    if not flow.node.all_input_nodes or (not operands and not holds_tensors(args)):
        return native(flow, args, kwargs, constant=True)  # arithmetic on sizes, new tensors
    if name in ELEMENTWISE and len(operands) == 1:
        return operands[0]
    if name in POOLING and len(operands) == 1:
        return pooling(flow, operands[0])
    if name in ADDITIONS | PRODUCTS | DIVISIONS and len(operands) == 1:
        return operands[0]
    if name in ADDITIONS | PRODUCTS and len(operands) == 2:
        return meet(flow, operands[0], operands[1], product=name in PRODUCTS)
    if name in REDUCTIONS and len(operands) == 1:
        return reduction(operands[0], args, kwargs)
    if name == "pad" and len(operands) == 1:
        return pad(flow, operands[0], args, kwargs)
    raise Unknown("is not understood")


# Layers with parameters.


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
    flow.tie(by_group[:, :1].expand_as(by_group), by_group)
    flow.tie(by_group[:, :1].expand_as(by_group_out), by_group_out)
    # Where all that a group reads has been scaled and it adds no bias, its outputs are too.
    scaled = (by_group > 0).all(1, keepdim=True) & (layer.bias is None)
    return torch.where(scaled, by_group_out.abs(), by_group_out).flatten()


def linear(flow: "Flow", layer: nn.Linear, x: Tensor) -> Tensor:
    """Reads features along the last dimension, makes new ones."""
    outputs = flow.make(str(flow.node.target), channels(x, -1), layer.out_features)
    return place(outputs, flow.shapes[flow.node], -1)


def per_channel_layer(flow: "Flow", layer: nn.Module, x: Tensor) -> Tensor:
    """BatchNorm and PReLU have parameters for each channel and pass it on."""
    if isinstance(layer, nn.PReLU) and layer.num_parameters == 1:
        return x
    flow.pass_through(
        str(flow.node.target),
        channels(x, 1),
        scaled=isinstance(layer, nn.BatchNorm2d) and layer.affine,
    )
    return x.abs() if getattr(layer, "affine", False) else x


def constant_pad(flow: "Flow", layer: Any, x: Tensor) -> Tensor:
    """Constant channels in front and behind are channels that the layer makes."""
    padding = list(layer.padding)
    if len(padding) > 2 * (x.ndim - 1):
        raise Unknown("pads the batch dimension")
    front, back = padding[2 * (x.ndim - 2) :] or (0, 0)
    if min(front, back) < 0:
        raise Unknown("crops channels")
    vector = channels(x, 1)
    if front + back:
        new = flow.make(str(flow.node.target), None, front + back)
        new = new.abs() if layer.value == 0 else new  # zero, as a channel with scale 0 would be
        split = int((new.abs() < flow.layers[str(flow.node.target)].outputs[0] + front).sum())
        vector = torch.cat([new[:split], vector, new[split:]])
    return place(vector, flow.shapes[flow.node], 1)


# Operations without parameters.


def meet(flow: "Flow", a: Tensor, b: Tensor, product: bool) -> Tensor:
    """Two tensors meet element by element: their channels go together.

    A sum has been scaled by a BatchNorm where both terms have, a product where one factor has.
    """
    full_a, full_b = torch.broadcast_tensors(a, b)
    if _spread(a, full_b):
        return _over_channels(flow, a, full_b, product)
    if _spread(b, full_a):
        return _over_channels(flow, b, full_a, product)
    flow.tie(*collapse_both(full_a, full_b), coupled=not product)
    scaled = (full_a > 0) | (full_b > 0) if product else (full_a >= 0) & (full_b >= 0)
    return torch.where(scaled, full_a.abs(), -full_a.abs())


def _spread(small: Tensor, big: Tensor) -> bool:
    """Whether broadcasting repeats `small` over different channels of `big`."""
    offset = big.ndim - small.ndim
    repeated = [d for d in range(big.ndim) if d < offset or small.size(d - offset) < big.size(d)]
    return any(not constant_along(big, d) for d in repeated)


def _over_channels(flow: "Flow", one: Tensor, many: Tensor, product: bool) -> Tensor:
    """One channel (a spatial gate, a parameter) meets many: it stays, they are free to go."""
    flow.pin(collapse(one), f"is spread over other channels in {flow.place_name}")
    if product or not bool(collapse(one).any()):
        return many
    return -many.abs()  # a sum is not 0 where the scale is


def reduction(x: Tensor, args: tuple, kwargs: dict) -> Tensor:
    """A mean or sum over dimensions along which the channel does not change."""
    dim = kwargs.get("dim", kwargs.get("axis", args[1] if len(args) > 1 else None))
    if dim is None:
        raise Unknown("mixes channels")
    keepdim = kwargs.get("keepdim", args[2] if len(args) > 2 else False)
    for d in sorted((d % x.ndim for d in ([dim] if isinstance(dim, int) else dim)), reverse=True):
        x = first(x, d)
        x = x if keepdim else x.squeeze(d)
    return x


def pooling(flow: "Flow", x: Tensor) -> Tensor:
    """Pooling and resizing work within each channel."""
    return place(channels(x, 1), flow.shapes[flow.node], 1)


def pad(flow: "Flow", x: Tensor, args: tuple, kwargs: dict) -> Tensor:
    """A functional pad; new channels cannot be removed, their number stands in the code."""
    widths = list(kwargs.get("pad", args[1] if len(args) > 1 else ()))
    if len(widths) <= 2 * (x.ndim - 2):
        return pooling(flow, x)
    mode = kwargs.get("mode", args[2] if len(args) > 2 else "constant")
    if mode != "constant":
        raise Unknown("pads channels with other than a constant")
    return torch.nn.functional.pad(x, widths, value=0)


def move(flow: "Flow", name: str, args: tuple, kwargs: dict) -> Any:
    """Views, splits and concatenations move channel numbers as they move activations."""
    if name == "getitem" and holds_tensors(args[1:]):
        raise Unknown("picks elements by another tensor")
    if name == "view" and isinstance(args[0], Tensor):
        args = (args[0].contiguous(), *args[1:])  # the numbers' memory layout is their own
    if name == "split" and not flow.sizes_are_computed:
        flow.pin_all(args[0], f"is split at fixed sizes in {flow.place_name}")
    result = native(flow, args, kwargs)
    if name in SPLITS and len({part.shape for part in result}) == 1:
        for part in result[1:]:  # equal parts stay equal when they lose the same places
            flow.tie(*collapse_both(result[0], part))
    before = args[0]
    if isinstance(result, Tensor) and isinstance(before, Tensor) and unfolds(before, result):
        lanes = collapse(result)
        flow.tie(lanes[:, :1].expand_as(lanes), lanes)
    return result


def attribute(flow: "Flow", name: str) -> Any:
    """A parameter used outside its layer: what it meets, and its layer, stay whole."""
    value = flow.fetch_attr(name)
    if not isinstance(value, Tensor):
        return value
    flow.lock(name.rpartition(".")[0])
    return fixed(value.shape)


def native(flow: "Flow", args: tuple, kwargs: dict, constant: bool = False) -> Any:
    """Run the operation itself; `constant`: it makes tensors that hold no channels."""
    call_it = flow.call_method if flow.node.op == "call_method" else flow.call_function
    try:
        result = call_it(flow.node.target, args, kwargs)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise Unknown(f"cannot follow channels ({str(error).splitlines()[0]})") from error
    if constant:
        return fx.node.map_aggregate(
            result, lambda x: fixed(x.shape) if isinstance(x, Tensor) else x
        )
    return result
