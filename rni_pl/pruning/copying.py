"""Copies of networks whose parameters and buffers are others."""

import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from rni_pl.errors import PruningError

ATOMS = {type(None), bool, int, float, str}  # what a copy may share
TABLES = ("_parameters", "_buffers")


@dataclass
class Parts:
    """The modules of a network, and where its parameters and buffers are.

    Attributes:
        modules: every module once, by its name, a parent before its children.
        tensors: every parameter and buffer once, by its name.
        places: the name of a tensor, and a module and a key where it is.
    """

    modules: dict[str, nn.Module]
    tensors: dict[str, Tensor]
    places: list[tuple[str, nn.Module, str]]

    @classmethod
    def of(cls, model: nn.Module) -> "Parts":
        """The parts of a network."""
        parts = cls({}, {}, [])
        names: dict[int, str] = {}
        seen: set[int] = set()
        waiting = [("", model)]
        while waiting:
            name, module = waiting.pop()
            if id(module) in seen:
                continue
            seen.add(id(module))
            parts.modules[name] = module
            lead = name + "." if name else ""
            for key, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is not None:
                    first = names.setdefault(id(tensor), lead + key)
                    parts.tensors.setdefault(first, tensor)
                    parts.places.append((first, module, key))
            children = [(lead + key, m) for key, m in module._modules.items() if m is not None]
            waiting += reversed(children)
        return parts

    @property
    def network(self) -> nn.Module:
        """The network itself."""
        return self.modules[""]

    def shared(self) -> set[str]:
        """Names of tensors that several layers have."""
        names = [name for name, _, _ in self.places]
        return {name for name in names if names.count(name) > 1}

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Give the network other parameters and buffers, by their names."""
        for name, module, key in self.places:
            table = module._parameters if key in module._parameters else module._buffers
            table[key] = tensors[name]  # type: ignore[assignment]

    def train(self, training: bool) -> None:
        """Set the mode, as the network itself would; evaluation is every module's."""
        if training:
            self.network.train()
            return
        for module in self.modules.values():
            vars(module)["training"] = False

    def copy(self, tensors: Mapping[str, Tensor], passing: bool = False) -> "Parts":
        """A copy of all modules, in the same modes, with other parameters and buffers.

        Whatever else modules hold is copied too, as `copy.deepcopy` would do; a ``__deepcopy__`` of
        a module's own is not asked, since it may build the network anew.

        Args:
            tensors: what takes the place of each parameter and buffer, by name.
            passing: the copy is thrown away: it may share what cannot be copied.

        Raises:
            PruningError: what a module holds cannot be copied; the attribute is named.
        """
        memo: dict[int, Any] = {id(tensor): tensors[name] for name, tensor in self.tensors.items()}
        made = {name: _blank(name, module, passing) for name, module in self.modules.items()}
        memo.update((id(module), made[name]) for name, module in self.modules.items())
        for name, module in self.modules.items():
            state = vars(made[name])
            state.update(vars(module))
            state.pop("_compiled_call_impl", None)  # it runs the module given, not its copy
            for key, value in state.items():
                kind = type(value)
                if kind in ATOMS:
                    continue
                if kind in (dict, OrderedDict, set) and not value:  # tables of hooks, a dozen
                    state[key] = kind()
                elif key in TABLES or key == "_modules":
                    state[key] = {k: None if v is None else memo[id(v)] for k, v in value.items()}
                elif kind is not tuple or not all(type(v) in ATOMS for v in value):
                    state[key] = _copied(f"{name}.{key}".lstrip("."), value, memo, passing)
        places = [(name, memo[id(module)], key) for name, module, key in self.places]
        return Parts(made, dict(tensors), places)


def _blank(name: str, module: nn.Module, passing: bool) -> nn.Module:
    """A module of the same class that holds nothing yet."""
    kind = type(module)
    if isinstance(module, torch.jit.ScriptModule):
        raise PruningError(f"{name or 'the network'} is a ScriptModule: prune it before")
    if isinstance(module, fx.GraphModule) and not passing:  # its class holds its code
        kind = type(kind.__name__, (kind,), {"forward": kind.forward})
    return object.__new__(kind)


def _copied(name: str, value: Any, memo: dict[int, Any], passing: bool) -> Any:
    """A copy of what a module holds under an attribute."""
    known = len(memo)
    try:
        return copy.deepcopy(value, memo)
    except Exception as error:  # whatever the copying of anything may raise
        for key in list(memo)[known:]:  # what was copied by half
            del memo[key]
        for tensor in _calculated(value, set()):  # activations that were kept, with their gradients
            memo[id(tensor)] = tensor.detach().clone()
        try:
            return copy.deepcopy(value, memo)
        except Exception:
            if passing:
                return value
            reason = str(error).splitlines()[0]
            raise PruningError(
                f"{name} ({type(value).__name__}) cannot be copied: {reason}"
            ) from error


def _calculated(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """The tensors in something that were calculated from others, which cannot be copied."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        if not value.is_leaf:
            yield value
        return
    if isinstance(value, Mapping):
        inside = list(value.values())
    elif isinstance(value, list | tuple | set | frozenset):
        inside = list(value)
    else:
        inside = list(getattr(value, "__dict__", {}).values())
    for each in inside:
        yield from _calculated(each, seen)
