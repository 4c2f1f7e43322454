"""The functions and layers that the engine knows, by name and by class."""

import re

import torch
from torch import fx, nn

from rni_pl.norm import SigmoidBatchNorm2d, SigmoidBatchNormAct2d
from rni_pl.pruning.probe import is_silent_at_zero, keeps_channels_apart

# Operations by the name of the function or method; in-place forms end in an underscore.
ACTIVATIONS = {
    "relu", "relu6", "hardtanh", "silu", "gelu", "hardswish", "hardsigmoid", "sigmoid", "tanh",
    "leaky_relu", "elu", "selu", "celu", "mish", "softplus", "softsign", "logsigmoid", "clamp",
    "clamp_min", "clamp_max", "dropout", "dropout1d", "dropout2d", "feature_dropout",
    "alpha_dropout", "neg", "abs", "exp", "sqrt", "rsqrt", "square", "pow", "stochastic_depth",
    "drop_path",
}  # fmt: skip
CASTS = {
    "contiguous", "clone", "detach", "float", "double", "half", "bfloat16", "to", "type", "type_as",
}  # fmt: skip
POOLING = {
    "max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d",
    "adaptive_avg_pool2d", "adaptive_max_pool1d", "adaptive_max_pool2d", "lp_pool2d",
    "interpolate", "upsample", "boolean_dispatch", "max_pool2d_with_indices",
    "adaptive_max_pool2d_with_indices",
}  # fmt: skip
ADDITIONS = {"add", "iadd", "sub", "isub", "rsub"}
EXTREMA = {"maximum", "minimum", "max", "min"}
PRODUCTS = {"mul", "imul", "multiply"}
DIVISIONS = {"div", "divide", "truediv", "itruediv"}
REDUCTIONS = {"mean", "sum", "amax", "amin"}
JOINS = {"cat", "concat", "concatenate"}
MOVES = {
    "view", "reshape", "flatten", "unflatten", "permute", "transpose", "swapaxes", "movedim", "t",
    "squeeze", "unsqueeze", "expand", "expand_as", "view_as", "reshape_as", "unbind", "narrow",
    "select", "stack", "getitem", "size", "getattr", "dim", "ndimension", "numel", "flip", "roll",
}  # fmt: skip
QUERIES = {"size", "getattr", "dim", "ndimension", "numel", "nelement", "stride", "getitem"}
NEW = {"new_empty", "new_full", "new_ones", "new_zeros"}
SPLITS = {"chunk", "split", "tensor_split"}
DROPPING = {name for name in ACTIVATIONS if "drop" in name or name == "stochastic_depth"}
FOLLOWED = ACTIVATIONS | CASTS | PRODUCTS
ARITHMETIC = ADDITIONS | PRODUCTS | DIVISIONS
WITH_NUMBERS = FOLLOWED | ARITHMETIC  # what may take a number beside a tensor
IN_PLACE = {"iadd", "isub", "imul", "itruediv"}

# Layers by their class.
ELEMENTWISE_LAYERS = (
    nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.SiLU, nn.GELU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid,
    nn.Tanh, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.Mish, nn.Softplus, nn.Softsign,
    nn.LogSigmoid, nn.Tanhshrink, nn.Softshrink, nn.Hardshrink, nn.Threshold, nn.RReLU, nn.Identity,
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout,
)  # fmt: skip
POOLING_LAYERS = (
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


def name_of(node: fx.Node) -> str:
    """The name of the function or method that a node calls, in-place forms alike."""
    return getattr(node.target, "__name__", str(node.target)).rstrip("_")


def describe(node: fx.Node) -> str:
    """An operation as a user knows it: its layer's name, or what it calls and where."""
    if node.op == "call_module":
        return str(node.target)
    called = node.target if isinstance(node.target, str) else node.target.__name__
    called = called.removeprefix("i") if called in IN_PLACE else called
    stack = node.meta.get("nn_module_stack") or {}
    inside = next(reversed(stack.values()), ("",))[0] if stack else ""
    return f"{called} in {inside}" if inside else str(called)


def is_in_place(node: fx.Node) -> bool:
    """Whether a node changes its first argument."""
    called = node.target if isinstance(node.target, str) else node.target.__name__
    marked = called.endswith("_") and not called.endswith("__")
    if node.op == "call_function":  # Python's own `and_` is none of these
        marked = marked and getattr(node.target, "__module__", "") != "_operator"
        return marked or called in IN_PLACE
    return node.op == "call_method" and marked


def asks_for_kind(node: fx.Node) -> bool:
    """Whether a node asks for a tensor's type or device alone."""
    return name_of(node) == "getattr" and node.args[1] in ("dtype", "device")


def changed_by(node: fx.Node) -> fx.Node:
    """What a node that works in place changes: its first argument."""
    return node.all_input_nodes[0]


def is_known(layer: nn.Module) -> bool:
    """Whether channels can be cut out of `layer`, whatever class it derives from."""
    return (
        isinstance(layer, WITH_CHANNELS)
        and not has_hooks(layer)
        and layer._parameters.keys() | layer._buffers.keys() <= TENSORS
        and not any(_holds_tensors(child) for child in layer._modules.values())
        and (_has_a_forward_we_know(layer) or keeps_channels_apart(layer))
    )


def _holds_tensors(layer: nn.Module | None) -> bool:
    if layer is None:
        return False
    own = bool(layer._parameters or layer._buffers)
    return own or any(_holds_tensors(child) for child in layer._modules.values())


def _has_a_forward_we_know(layer: nn.Module) -> bool:
    kind = type(layer)
    return kind.forward in FORWARDS or f"{kind.__module__}.{kind.__qualname__}" in TIMM_FORWARDS


def has_hooks(layer: nn.Module) -> bool:
    """Whether a hook, or a forward pass set on this very layer, could change what it does."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks) or has_forward_set(layer)


def has_forward_set(module: nn.Module) -> bool:
    """Whether the forward pass of this very module was replaced, not that of its class."""
    return "forward" in vars(module)


def wrapper_of(model: nn.Module) -> str:
    """Where the network is that a compiled or parallel one hides; empty: it is one."""
    if hasattr(model, "_orig_mod"):
        return "before torch.compile, or its _orig_mod"
    if isinstance(model, torch.jit.ScriptModule):
        return "before torch.jit made a ScriptModule of it"
    parallel = isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel)
    return "its .module" if parallel else ""


def spatial_rank(name: str) -> int | None:
    """How many dimensions of positions an operation works on, where its name says so."""
    digits = re.search(r"([123])d", name)
    return int(digits[1]) if digits else None


def is_scaled(layer: nn.Module) -> bool:
    """Whether it is a BatchNorm whose scales rank its channels: at 0 they say nothing."""
    if not isinstance(layer, nn.BatchNorm2d) or not layer.affine:
        return False
    return _has_a_forward_we_know(layer) or is_silent_at_zero(layer)
