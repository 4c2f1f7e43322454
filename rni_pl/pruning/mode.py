"""Whether a network's code asks for the training mode, so that it may do something else in it."""

import ast
import inspect
import textwrap
from collections.abc import Iterable, Iterator
from types import CodeType, FunctionType, MethodType
from typing import Any

from torch import nn

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
