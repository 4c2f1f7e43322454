"""Running a network for what its code does: examples, copies to run, and the training mode."""

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import CodeType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from rni_pl.copying import Parts
from rni_pl.norm import SigmoidBatchNorm
from rni_pl.pruning.ids import Axis, Label, all_ids
from rni_pl.pruning.propagate import Propagation, run
from rni_pl.pruning.rules import SILENT_SIGMOID


@dataclass(frozen=True)
class Example:
    """The arguments of one forward pass."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def of(cls, inputs: Any, kwargs: dict[str, Any] | None = None) -> "Example":
        """A tuple is the positional arguments, anything else is one argument."""
        return cls(inputs if isinstance(inputs, tuple) else (inputs,), dict(kwargs or {}))

    @property
    def images(self) -> int:
        """The first dimension of the first tensor."""
        tensors = tensors_in((self.args, self.kwargs))
        return next((len(x) for x in tensors if x.ndim), 1)

    def map(self, function: Callable[[Tensor], Tensor]) -> "Example":
        """With other tensors."""
        args, kwargs = pytree.tree_map_only(Tensor, function, (self.args, self.kwargs))
        return Example(args, kwargs)


def tensors_in(values: Any) -> list[Tensor]:
    """Every tensor of nested containers, and of the attributes of what is none."""
    found: list[Tensor] = []
    for leaf in pytree.tree_leaves(values):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif hasattr(leaf, "__dict__") and not isinstance(leaf, type | nn.Module | FunctionType):
            found += [x for x in vars(leaf).values() if isinstance(x, Tensor)]
            found += [x for v in vars(leaf).values() if isinstance(v, list | tuple | dict)
                      for x in pytree.tree_leaves(v) if isinstance(x, Tensor)]  # fmt: skip
    return found


def twin(
    parts: Parts, known: dict[str, Label], real: bool, tensors: Mapping[str, Tensor] | None = None
) -> Parts:
    """A copy for one run, whose parameters carry the labels that are known, or new ones.

    `tensors` may give others than the network's own, by name.
    """
    made: dict[str, Tensor] = {}
    owner = {name: (module, key) for name, module, key in reversed(parts.places)}
    with torch.inference_mode():
        for name, tensor in parts.tensors.items():
            new = _stand_in((tensors or {}).get(name, tensor).detach(), real)
            made[name] = nn.Parameter(new, False) if isinstance(tensor, nn.Parameter) else new
            if tensor.is_floating_point() or tensor.is_complex():
                if name not in known:
                    known[name] = _fresh_label(name, *owner[name], tensor)
                made[name].channels = known[name], None  # type: ignore[attr-defined]
    return parts.copy(made, passing=True)


def _stand_in(tensor: Tensor, real: bool) -> Tensor:
    if real or not (tensor.is_floating_point() or tensor.is_complex()):
        return tensor.clone()
    return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta")


def _fresh_label(name: str, module: nn.Module, key: str, tensor: Tensor) -> Label:
    axes = {d: Axis() for d, size in enumerate(tensor.shape) if size > 1}
    label = Label(axes, name=name, source=name)
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and key == "weight":
        label.silent_at = SILENT_SIGMOID if isinstance(module, SigmoidBatchNorm) else 0.0
    return label


def forward(parts: Parts, example: Example, under: Propagation, training: bool) -> None:
    """One run; all that reaches the network's output is fixed."""

    def given(x: Tensor) -> Tensor:
        new = _stand_in(x.detach(), not under.meta)
        under.put(new, Label(source=f"input {next(numbers)}"))
        return new

    numbers = iter(range(2**31))
    with torch.inference_mode():
        inputs = example.map(given)
    parts.train(training)
    hooks = [h for name, module in parts.modules.items() for h in _hooks(name, module, under)]
    try:
        output = run(parts.network, inputs.args, inputs.kwargs, under)
    finally:
        for hook in hooks:
            hook.remove()
    labels = [under.label(x) for x in tensors_in(output)]
    under.pin(all_ids(labels), "feeds the network's output")


def _hooks(name: str, module: nn.Module, under: Propagation) -> Iterator[Any]:
    """Have the run know of layers that it must treat as a whole."""
    if type(module) is nn.ConstantPad3d or (type(module) is nn.GroupNorm and not module.affine):
        yield module.register_forward_pre_hook(lambda *_: setattr(under, "layer", name))
        yield module.register_forward_hook(lambda *_: setattr(under, "layer", ""))
    elif isinstance(module, nn.MultiheadAttention):
        yield module.register_forward_pre_hook(
            lambda _, args, kwargs: _hold_attended(under, (args, kwargs)), with_kwargs=True
        )


def _hold_attended(under: Propagation, given: Any) -> None:
    with _disable_current_modes():
        labels = [under.label(x) for x in tensors_in(given)]
        under.pin(all_ids(labels), "feeds a MultiheadAttention, whose width is that of its heads")


# Functions that may be told the mode: which channels meet in them is the same in both modes.
DROPPING = {
    "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout",
    "drop_path", "drop_block_2d", "drop_block_fast_2d", "stochastic_depth",
    "scaled_dot_product_attention", "train",
}  # fmt: skip
_ASKING: dict[Any, bool] = {}


def asks_for_mode(modules: Iterable[nn.Module]) -> bool:
    """Whether a network's code, torch's own layers left out, goes by the training mode.

    Code that only hands it to dropout does not.
    """
    kinds, functions = set(), []
    for module in modules:
        kinds.add(type(module))
        for key, value in vars(module).items():  # hooks, and functions that a module calls
            if key in ("_forward_hooks", "_forward_pre_hooks"):
                functions += list(value.values())
            elif type(value) in (FunctionType, MethodType):
                functions.append(value)
    functions = [getattr(each, "__func__", each) for each in functions]
    return any(map(_kind_asks, kinds)) or any(
        _asks(each, set()) for each in functions if isinstance(each, FunctionType)
    )


def _kind_asks(kind: type) -> bool:
    plain = nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd
    if kind not in _ASKING:
        _ASKING[kind] = not issubclass(kind, plain) and any(
            _asks(function, set())
            for base in kind.__mro__ if not base.__module__.startswith("torch.nn.")
            for function in vars(base).values()
            if isinstance(function, FunctionType) and function.__name__ not in ("train", "__init__")
        )  # fmt: skip
    return _ASKING[kind]


def _asks(function: FunctionType, seen: set[FunctionType]) -> bool:
    """Whether a function, or one that it calls by name, asks for the mode."""
    if function in seen or (function.__module__ or "").startswith("torch."):
        return False
    seen.add(function)
    codes = list(codes_of(function.__code__))
    asks = any("training" in (*code.co_names, *code.co_consts) for code in codes)
    if asks and not _only_drops(function):
        return True
    called = (function.__globals__.get(name) for code in codes for name in code.co_names)
    return any(_asks(each, seen) for each in called if isinstance(each, FunctionType))


def _only_drops(function: FunctionType) -> bool:
    """Whether the code of a function hands the mode to dropout and does nothing else with it."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, SyntaxError):  # there is no source
        return False
    handed = {
        id(part)
        for call in ast.walk(tree) if isinstance(call, ast.Call)
        if (getattr(call.func, "attr", None) or getattr(call.func, "id", "")) in DROPPING
        for argument in (*call.args, *(keyword.value for keyword in call.keywords))
        for part in ast.walk(argument)
    }  # fmt: skip
    asked = [x for x in ast.walk(tree) if isinstance(x, ast.Attribute) and x.attr == "training"]
    return bool(asked) and all(id(x) in handed for x in asked)


def codes_of(code: CodeType) -> Iterator[CodeType]:
    """A function's code and that of the functions within."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes_of(constant)
