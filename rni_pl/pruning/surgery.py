"""Removal of channels: a new, smaller network made of the same module classes."""

import copy
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rni_pl.errors import PruningError
from rni_pl.pruning.numbering import LayerChannels, map_layers

# Sizes of a network's changed layers: layer name -> attribute (as the module calls it) -> value.
# Plain numbers and lists, so that it can travel in a checkpoint.
Structure = dict[str, dict[str, Any]]


ATOMS = {type(None), bool, int, float, str}  # what a copy may share

# What may be in a structure: the sizes of each kind of layer that channels can be removed from.
SIZES: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Conv2d: ("in_channels", "out_channels", "groups"),
    nn.Linear: ("in_features", "out_features"),
    nn.modules.batchnorm._BatchNorm: ("num_features",),
    nn.PReLU: ("num_parameters",),
    nn.ConstantPad3d: ("padding",),
}


def structure_of(model: nn.Module) -> Structure:
    """The present sizes of every layer of `SIZES`, for `resize`."""
    return {
        name: {key: _plain(getattr(module, key)) for key in keys}
        for name, module in model.named_modules()
        for kind, keys in SIZES.items()
        if isinstance(module, kind)
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def remove(model: nn.Module, layers: Mapping[str, LayerChannels], keep: Tensor) -> nn.Module:
    """Copy `model` without the channels that `keep` leaves out.

    `layers` has the units of each layer's channels, `keep` is a bool tensor over units. The copy is
    on the same device and in the same mode; the model given is not touched.
    """
    copied: dict[int, Any] = {}
    changed: Structure = {}
    modules = dict(model.named_modules())
    masks = map_layers(layers, lambda units, lengths: keep[units].split(lengths))
    for name, mask in masks.items():
        if bool(mask.outputs.all()) and (mask.inputs is None or bool(mask.inputs.all())):
            continue
        module = modules[name]
        cut = Cut.of(module, mask)
        changed[name] = cut.sizes
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                copied[id(tensor)] = _sliced(tensor, cut)
    smaller = _copy(model, modules.values(), copied)
    for name, values in changed.items():
        _set_sizes(copied[id(modules[name])], values)
    return smaller


def share_tensors(model: nn.Module) -> nn.Module:
    """A copy of all modules that shares their parameters and buffers."""
    modules = list(model.modules())
    tensors = (t for m in modules for t in (*m._parameters.values(), *m._buffers.values()))
    return _copy(model, modules, {id(tensor): tensor for tensor in tensors})


def _copy(model: nn.Module, modules: Iterable[nn.Module], copied: dict[int, Any]) -> nn.Module:
    """`copy.deepcopy`, several times faster, and without what is `copied` already (id -> copy).

    Large weights are sliced, never copied whole.
    """
    modules = list(modules)
    plain = {kind for kind in set(map(type, modules)) if _has_no_copying_of_its_own(kind)}
    twins = {m: m.__new__(type(m)) for m in modules if type(m) in plain}
    copied.update({id(module): twin for module, twin in twins.items()})
    for module, twin in twins.items():
        state = vars(twin)
        state.update(vars(module))
        state.pop("_compiled_call_impl", None)  # it runs the module given, not its copy
        for key, value in state.items():
            kind = type(value)
            if kind in ATOMS or (kind is tuple and all(type(v) in ATOMS for v in value)):
                continue
            if kind in (dict, OrderedDict, set) and not value:  # tables of hooks, a dozen
                state[key] = kind()
            elif key in ("_parameters", "_buffers", "_modules"):
                state[key] = {k: _twin(v, copied) for k, v in value.items()}
            else:
                state[key] = copy.deepcopy(value, copied)
    return copy.deepcopy(model, copied)


def _twin(value: Any, copied: dict[int, Any]) -> Any:
    """The copy of a module or tensor."""
    if value is None or id(value) in copied:
        return copied.get(id(value))
    if type(value) is Tensor and not value.requires_grad and not vars(value):  # a buffer
        return copied.setdefault(id(value), value.clone())
    return copy.deepcopy(value, copied)


def _has_no_copying_of_its_own(kind: type[nn.Module]) -> bool:
    return (
        not hasattr(kind, "__deepcopy__")
        and kind.__setstate__.__module__.startswith("torch.nn.modules.")  # for old pickles
        and kind.__reduce_ex__ is object.__reduce_ex__
        and kind.__reduce__ is object.__reduce__
        and getattr(kind, "__getstate__", None) is getattr(nn.Module, "__getstate__", None)
    )


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
        _check_sizes(name, module, values)
        if all(_plain(getattr(module, key)) == _plain(value) for key, value in values.items()):
            continue  # it may hold tensors that no pruned layer has
        _set_sizes(module, dict(values))
        _check_groups(name, module)
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and tensor.ndim:
                tensor.data = tensor.data.new_empty(_shape(module, key, tensor))
    return model


def _check_sizes(name: str, module: nn.Module, values: Any) -> None:
    """Structures come from checkpoints, too: only sizes are set, on layers that have them."""
    allowed = [keys for kind, keys in SIZES.items() if isinstance(module, kind)]
    if not isinstance(values, Mapping) or not allowed or not values.keys() <= set(allowed[0]):
        raise PruningError(f"layer {name!r} ({type(module).__name__}) has no sizes {values!r}")
    for key, value in values.items():
        numbers = value if key == "padding" else [value]
        like = len(module.padding) if key == "padding" else 1  # type: ignore[arg-type]
        if (
            not isinstance(numbers, list | tuple)
            or len(numbers) != like
            or not all(type(n) is int and 0 <= n <= 2**20 for n in numbers)
        ):
            raise PruningError(f"layer {name!r} cannot have {key}={value!r}")


def _check_groups(name: str, module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        sizes = (module.in_channels, module.out_channels)
        if module.groups < 1 or any(size % module.groups for size in sizes):
            raise PruningError(
                f"layer {name!r} cannot have groups={module.groups} with {sizes[0]} inputs and "
                f"{sizes[1]} outputs"
            )


@dataclass
class Cut:
    """What a layer keeps of its weight, by row and (one group's) column, and its sizes then."""

    rows: Tensor
    columns: Tensor | None
    sizes: dict[str, Any]

    @classmethod
    def of(cls, module: nn.Module, mask: LayerChannels) -> "Cut":
        """`mask` has bools in place of channel numbers."""
        rows = mask.outputs.nonzero().flatten()
        if mask.inputs is None:
            return cls(rows, None, _sizes_without_inputs(module, mask.outputs, len(rows)))
        columns = mask.inputs.nonzero().flatten()
        if isinstance(module, nn.Linear):
            return cls(rows, columns, {"in_features": len(columns), "out_features": len(rows)})
        assert isinstance(module, nn.Conv2d)
        sizes = {"in_channels": len(columns), "out_channels": len(rows), "groups": 1}
        if module.groups > 1:
            alive = _groups_kept(module, mask)
            sizes["groups"] = len(alive)
            columns = mask.inputs.view(module.groups, -1)[alive[0]].nonzero().flatten()
        return cls(rows, columns, sizes)


def _sizes_without_inputs(module: nn.Module, mask: Tensor, outputs: int) -> dict[str, Any]:
    if isinstance(module, nn.PReLU):
        return {"num_parameters": outputs}
    if isinstance(module, nn.ConstantPad3d):
        front = int(mask[: module.padding[4]].sum())
        return {"padding": [*module.padding[:4], front, outputs - front]}
    return {"num_features": outputs}


def _set_sizes(module: nn.Module, values: dict[str, Any]) -> None:
    for key, value in values.items():
        setattr(module, key, tuple(value) if isinstance(value, list | tuple) else value)


def _sliced(tensor: Tensor, cut: Cut) -> Tensor:
    """What remains of a parameter or buffer; scalars (the batch counter) stay."""
    data = tensor.detach()
    if data.ndim == 0:
        return data.clone()
    data = data.index_select(0, cut.rows.to(data.device))
    if data.ndim > 1 and cut.columns is not None:
        data = data.index_select(1, cut.columns.to(data.device))
    if tensor.ndim == 4 and not tensor.is_contiguous():
        data = data.contiguous(memory_format=torch.channels_last)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(data, requires_grad=tensor.requires_grad)
    return data


def _groups_kept(module: nn.Conv2d, mask: LayerChannels) -> Tensor:
    """Numbers of the groups that keep channels, all of them alike."""
    assert mask.inputs is not None
    ins, outs = mask.inputs.view(module.groups, -1), mask.outputs.view(module.groups, -1)
    alive = ins.any(1).nonzero().flatten()
    same = (ins[alive] == ins[alive[:1]]).all() and len(outs[alive].sum(1).unique()) == 1
    if not same or not torch.equal(outs.any(1), ins.any(1)):
        raise PruningError("the groups of a grouped convolution would differ in width")
    return alive


def _shape(module: nn.Module, key: str, tensor: Tensor) -> list[int]:
    if isinstance(module, nn.Conv2d) and key == "weight":
        return [module.out_channels, module.in_channels // module.groups, *tensor.shape[2:]]
    if isinstance(module, nn.Linear) and key == "weight":
        return [module.out_features, module.in_features]
    for size in ("out_channels", "out_features", "num_features", "num_parameters"):
        if hasattr(module, size):
            return [getattr(module, size)]
    raise PruningError(f"{type(module).__name__} has no {key} that could be resized")
