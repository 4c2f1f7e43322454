"""Pruning a network in the middle of its training, without a new one: its optimisers go on."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rni_pl.errors import PruningError
from rni_pl.pruning.copying import Parts
from rni_pl.pruning.oneshot import removal
from rni_pl.pruning.report import PruningReport
from rni_pl.pruning.surgery import Cut


def prune_in_place(
    model: nn.Module,
    example_inputs: Any,
    ratio: float | str | None = None,
    *,
    optimizers: Sequence[Optimizer] = (),
    copies: Iterable[nn.Module] = (),
    **options: Any,
) -> PruningReport:
    """As `rni_pl.prune`, in the network that is given: parameters stay the same objects.

    Args:
        model, example_inputs, ratio, options: see `rni_pl.prune`.
        optimizers: whose state of a parameter's shape loses the same channels (the moments of SGD,
            Adam and others); schedules go on, as they hold the optimisers.
        copies: networks of the same layers that lose the same channels, such as averaged weights.

    Raises:
        PruningError: see `rni_pl.prune`, or an optimiser keeps state of another shape (Adafactor);
            nothing is changed then.
    """
    done = removal(model, example_inputs, ratio, **options)
    cut, parts = Cut.of(done.graph, done.plan.keep), done.graph.parts
    for optimizer in optimizers:
        _check_state(optimizer, parts, cut)
    for one in copies:
        of_copy = Parts.of(one)
        _fill(of_copy, cut.tensors(of_copy), cut)
    for optimizer in optimizers:
        _slice_state(optimizer, parts, cut)
    _fill(parts, done.pruned.tensors, cut)
    return done.report


@torch.no_grad()
def _fill(parts: Parts, tensors: dict[str, Tensor], cut: Cut) -> None:
    """Give a network what is left of its parameters, buffers and sizes."""
    for name, tensor in parts.tensors.items():
        if name in cut.left or not torch.equal(tensor, tensors[name]):
            tensor.data = tensors[name].detach()
        if isinstance(tensor, nn.Parameter):
            tensor.grad = None
    cut.resize(parts)


def _check_state(optimizer: Optimizer, parts: Parts, cut: Cut) -> None:
    for name, parameter, state in _states(optimizer, parts, cut):
        for key, value in state.items():
            if isinstance(value, Tensor) and value.ndim and value.shape != parameter.shape:
                raise PruningError(
                    f"{type(optimizer).__name__} keeps {key} of shape {tuple(value.shape)} for "
                    f"{name} of shape {tuple(parameter.shape)}, of which no channels can be removed"
                )


def _slice_state(optimizer: Optimizer, parts: Parts, cut: Cut) -> None:
    for name, parameter, state in _states(optimizer, parts, cut):
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[key] = cut.slice(name, value)


def _states(
    optimizer: Optimizer, parts: Parts, cut: Cut
) -> Iterator[tuple[str, Tensor, dict[str, Any]]]:
    """Name, parameter and state of everything that loses channels."""
    names = {id(tensor): name for name, tensor in parts.tensors.items()}
    for parameter, state in optimizer.state.items():
        name = names.get(id(parameter), "")
        if name in cut.left:
            yield name, parameter, state
