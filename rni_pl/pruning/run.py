"""Running a network's own forward pass on an example, operation by operation.

What such a run is for, and what is noted in it, is up to the kinds of `Run`: `Propagation` follows
the ids of channels, `Check` compares a pruned network with what the dense one did.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from rni_pl.norm import SigmoidBatchNorm
from rni_pl.pruning.copying import Parts
from rni_pl.pruning.ids import Axis, Label
from rni_pl.pruning.ops import Op, info_of

SILENT_SIGMOID = -1e4  # what the scale of a removed channel is at, under a sigmoid
# What lies between an operation and the network's own code: torch's, and this package's.
_PACKAGE = Path(__file__).parent.parent
_NOT_THE_NETWORKS = (
    str(Path(torch.__file__).parent) + "/", str(_PACKAGE / "pruning"), str(_PACKAGE / "norm"),
)  # fmt: skip


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
            found += [
                x for x in pytree.tree_leaves(list(vars(leaf).values())) if isinstance(x, Tensor)
            ]
    return found


class Run(TorchDispatchMode):
    """One run of a network, on tensors without content (torch's meta device) where `meta`.

    Attributes:
        ops: the operations so far.
        op: the one at hand.
        busy: whether it is with an operation, not with the network's code between them.
        layer: a layer without parameters that is at work, whose sizes can change.
    """

    def __init__(self, meta: bool) -> None:
        super().__init__()
        self.meta = meta
        self.token = object()  # tells the tensors of this run from those of others
        self.ops: list[Op] = []
        self.op: Op
        self.busy = False
        self.layer = ""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled under a run; to say so costs as much as a rule

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Carry out one operation."""
        info = info_of(func)
        if info.decomposes:
            with self:
                return func.decompose(*args, **(kwargs or {}))
        if info.writes and args[0].ndim == 0 and getattr(args[0], "channels", None) is None:
            return func(*args, **(kwargs or {}))  # a counter of batches, in training only
        self.busy = True
        self.op = op = Op(info, args, kwargs or {})
        self.ops.append(op)
        self.begin(op)
        op.out = out = info.shape(op) if self.meta and info.shape else func(*args, **op.kwargs)
        self.end(op)
        op.forget()
        self.busy = False
        return out

    def made_by(self, x: Tensor) -> Any:
        """The number of the operation that made a tensor, a parameter's name, or a constant."""
        found = getattr(x, "channels", None)
        return x if found is None or found[1] not in (None, self.token) else found[2]

    def begin(self, op: Op) -> None:
        """What is to be done before an operation is carried out."""
        raise NotImplementedError

    def end(self, op: Op) -> None:
        """What is to be done after it was carried out."""
        raise NotImplementedError

    def begun(self, x: Tensor, number: int) -> None:
        """What is to be done with an input of the network."""
        raise NotImplementedError

    def forward(self, parts: Parts, example: Example, training: bool = False) -> list[Tensor]:
        """Run a network: the tensors in its output."""

        def given(x: Tensor) -> Tensor:
            new = without_content(x.detach()) if self.meta else x.detach().clone()
            self.begun(new, next(numbers))
            return new

        numbers = iter(range(2**31))
        with torch.inference_mode():
            inputs = example.map(given)
        parts.train(training)
        hooks = [h for name, module in parts.modules.items() for h in self.hooks(name, module)]
        try:
            return tensors_in(_forward(parts.network, inputs, self))
        finally:
            for hook in hooks:
                hook.remove()

    def hooks(self, name: str, module: nn.Module) -> Iterator[Any]:
        """What the run has to know of a module while it works: handles of hooks."""
        return iter(())


def _forward(network: nn.Module, example: Example, under: Run) -> Any:
    with torch.inference_mode(), under:
        return network(*example.args, **example.kwargs)


def line_of_network(depth: int) -> tuple[CodeType, int] | None:
    """The line of the network's own code that is at work; None: torch's only."""
    frame = sys._getframe(depth)
    while frame is not None and frame.f_code is not _forward.__code__:
        if not frame.f_code.co_filename.startswith(_NOT_THE_NETWORKS):
            return frame.f_code, frame.f_lineno
        frame = frame.f_back  # type: ignore[assignment]
    return None


def twin(
    parts: Parts, stand_in: Callable[[str, Tensor], Tensor], known: dict[str, Label] | None = None
) -> Parts:
    """A copy for one run, with other tensors for parameters and buffers.

    They carry the labels that are `known`, or new ones.
    """
    made: dict[str, Tensor] = {}
    owner = {name: (module, key) for name, module, key in reversed(parts.places)}
    with torch.inference_mode():
        for name, tensor in parts.tensors.items():
            new = stand_in(name, tensor.detach())
            made[name] = nn.Parameter(new, False) if isinstance(tensor, nn.Parameter) else new
            if not (tensor.is_floating_point() or tensor.is_complex()):
                continue
            if known is not None and name not in known:
                known[name] = _fresh_label(name, *owner[name], tensor)
            label = None if known is None else known[name]
            made[name].channels = label, None, name  # type: ignore[attr-defined]
    return parts.copy(made, passing=True)


def without_content(x: Tensor, shape: Sequence[int] | None = None) -> Tensor:
    """A tensor without content, on torch's meta device; integers keep theirs."""
    if not (x.is_floating_point() or x.is_complex()):
        return x.clone()
    if shape is not None:
        return torch.empty(shape, dtype=x.dtype, device="meta")
    return torch.empty_strided(x.size(), x.stride(), dtype=x.dtype, device="meta")


def _fresh_label(name: str, module: nn.Module, key: str, tensor: Tensor) -> Label:
    axes = {d: Axis() for d, size in enumerate(tensor.shape) if size > 1}
    label = Label(axes, name=name, source=name)
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and key == "weight":
        label.silent_at = SILENT_SIGMOID if isinstance(module, SigmoidBatchNorm) else 0.0
    return label
