"""Sizes of a network's layers, in plain values, so that a pruned network can be built again."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from rni_pl.errors import PruningError

# Layer name -> attribute, parameter or buffer -> number or shape; it travels in checkpoints.
Structure = dict[str, dict[str, Any]]

SIZES = (
    "in_channels", "out_channels", "groups", "in_features", "out_features", "num_features",
    "num_channels", "num_groups", "num_parameters", "embedding_dim", "input_size",
)  # fmt: skip
LARGEST = 2**24


def structure_of(model: nn.Module) -> Structure:
    """The present sizes of every layer that has parameters or buffers, for `resize`."""
    structure: Structure = {}
    for name, module in model.named_modules():
        values = vars(module)
        sizes: dict[str, Any] = {key: values[key] for key in SIZES if type(values.get(key)) is int}
        for table in (module._parameters, module._buffers):
            shapes = {k: list(t.shape) for k, t in table.items() if t is not None and t.ndim}
            sizes.update(shapes)
        if isinstance(module, nn.ConstantPad3d):
            sizes = {"padding": list(module.padding)}
        elif not module._parameters and not module._buffers:
            continue
        if sizes:
            structure[name] = sizes
    return structure


def resize(model: nn.Module, structure: Mapping[str, Mapping[str, Any]]) -> nn.Module:
    """Give a freshly built network the sizes of a pruned one, in place.

    Layers of other sizes than before have empty weights then.

    Raises:
        PruningError: a layer is not in the model, or has no such size.
    """
    for name, values in structure.items():
        try:
            module = model.get_submodule(name)
        except AttributeError as error:
            raise PruningError(f"the network has no layer {name!r}") from error
        if not isinstance(values, Mapping):
            raise PruningError(f"layer {name!r} cannot have the sizes {values!r}")
        for key, value in values.items():
            _resize(name, module, key, value)
        _check_groups(name, module)
    return model


def _check_groups(name: str, module: nn.Module) -> None:
    groups, sizes = vars(module).get("groups"), vars(module)
    widths = [sizes[key] for key in ("in_channels", "out_channels") if key in sizes]
    if type(groups) is int and (groups < 1 or any(width % groups for width in widths)):
        raise PruningError(f"layer {name!r} cannot have groups={groups} with {widths} channels")


def _resize(name: str, module: nn.Module, key: str, value: Any) -> None:
    """Structures come from checkpoints: only sizes are set, on layers that have them."""
    tensor = module._parameters.get(key, module._buffers.get(key))
    before = list(tensor.shape) if tensor is not None else vars(module).get(key)
    before = list(before) if isinstance(before, tuple) else before
    known = (
        tensor is not None
        or key in SIZES
        or (key == "padding" and isinstance(module, nn.ConstantPad3d))
    )
    numbers = value if isinstance(value, list | tuple) else [value]
    alike = type(before) is (list if isinstance(value, list | tuple) else type(value))
    if not known or not alike or (isinstance(before, list) and len(before) != len(numbers)):
        raise PruningError(f"layer {name!r} ({type(module).__name__}) has no sizes {key}={value!r}")
    if not all(type(n) is int and 0 <= n <= LARGEST for n in numbers):
        raise PruningError(f"layer {name!r} cannot have {key}={value!r}")
    if before == (list(value) if isinstance(value, list | tuple) else value):
        return  # it may hold tensors that no pruned layer has
    if tensor is not None:
        tensor.data = tensor.data.new_empty(value)
    else:
        setattr(module, key, tuple(value) if isinstance(value, list | tuple) else value)
