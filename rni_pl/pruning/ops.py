"""Operations of torch as a run sees them, and the registry of rules for what they do to channels.

What is known of an operation comes from torch itself, from its schema and its tags, wherever it
says so; rules are registered by the operation's name.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any

import torch
from torch import Tensor

from rni_pl.pruning.ids import Label


class Misfit(Exception):
    """An operation of the pruned network that is not what it was, less the channels removed."""


class AnotherOperation(Misfit):
    """It is another one altogether: torch itself may choose by whether tensors have values."""


class Op:
    """An operation that is carried out, and what it did.

    Attributes:
        info: what is known of it before.
        args, kwargs: its arguments, until its rule has run, as are `tensors` and `out`.
        tensors: those among them, flattened.
        settings: the others, but for devices.
        out: its result.
        same: what of it is the same in the pruned network.
        sources: of its tensors: numbers of operations, names of parameters, or constants.
        made_by: the same, where a change in place is not seen in views.
        line: of the network's own code.
        layer: whose parameters it uses.
        inputs: labels of its tensors.
        outputs: labels of its results.
        shapes: of its results.
        unclear: why its channels could not be followed.
    """

    __slots__ = (
        "args", "info", "inputs", "kwargs", "layer", "line", "made_by", "out", "outputs",
        "same", "settings", "shapes", "sources", "tensors", "unclear",
    )  # fmt: skip

    def __init__(self, info: "OpInfo", args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self.info, self.args, self.kwargs = info, args, kwargs
        self.out: Any = None
        self.tensors: list[Tensor] = []
        self.settings: list[Any] = []
        self.same: Any = None
        self.sources: list[Any] = []
        self.made_by: list[Any] = []
        self.line: tuple[CodeType, int] | None = None
        self.layer = self.unclear = ""
        self.inputs: list[Label | None] = []
        self.outputs: list[Label] = []
        self.shapes: list[torch.Size] = []
        for value in (*args, *kwargs.values()) if kwargs else args:
            if isinstance(value, Tensor):
                self.tensors.append(value)
            elif isinstance(value, list | tuple) and any(isinstance(v, Tensor) for v in value):
                self.tensors += [v for v in value if isinstance(v, Tensor)]
            elif not isinstance(value, torch.device):  # a run may be on another one
                self.settings.append(list(value) if isinstance(value, tuple) else value)

    @property
    def name(self) -> str:
        """Without an overload, and without the underscore of in-place forms."""
        return self.info.name

    def get(self, name: str, default: Any = None) -> Any:
        """An argument by its name in the schema."""
        place, preset = self.info.places.get(name, (-1, default))
        if 0 <= place < len(self.args):
            return self.args[place]
        return self.kwargs.get(name, preset)

    @property
    def results(self) -> list[Tensor]:
        """The tensors that it makes, flattened."""
        if isinstance(self.out, Tensor):
            return [self.out]
        made: Sequence[Any] = self.out if isinstance(self.out, list | tuple) else []
        return [x for x in made if isinstance(x, Tensor)]

    @property
    def activations(self) -> list[Label]:
        """The labels of its tensors that are no parameters or constants."""
        return [label for label in self.inputs if label is not None and not label.name]

    @property
    def place(self) -> str:
        """The operation as a user knows it: its layer, and where the network's code calls it."""
        name = self.layer or self.name
        if self.line is None:
            return name
        return f"{name} ({Path(self.line[0].co_filename).name}:{self.line[1]})"

    def forget(self) -> None:
        """Let go of the tensors, which may be large."""
        self.args, self.kwargs, self.tensors, self.out = (), {}, [], None


Rule = Callable[[Any, Op], Any]  # (labels of the run, operation) -> label of each result
RULES: dict[str, Rule] = {}  # by the operation's name, in-place forms alike
# Results on tensors without content, where torch's own way to them takes long.
SHAPES: dict[str, Callable[[Op], Any]] = {}
# What has to be the same in the pruned network, where that is not all settings.
SAME: dict[str, Callable[[Op], Any]] = {}


def sizes(op: Op) -> None:
    """For operations whose numbers are sizes, which follow the channels."""


def rule(*names: str, same: Callable[[Op], Any] | None = None) -> Callable[[Rule], Rule]:
    """Register what operations do to channels, and what of their numbers no removal changes."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        if same is not None:
            SAME.update(dict.fromkeys(names, same))
        return function

    return register


def _settings(op: Op) -> list[Any]:
    return op.settings


@dataclass(slots=True, eq=False)
class OpInfo:
    """What is known of an operation before it is carried out.

    Attributes:
        func: the operation of torch.
        name: without an overload, and without the underscore of in-place forms.
        places: where each argument stands, and its default, by its name in the schema.
        rule: what it does to channels; None: it is not understood.
        shape: its result on tensors without content; None: torch's own.
        writes: it changes its first argument in place.
        views: its result may be a view of its first argument.
        decomposes: it is made of other operations, which are understood better.
        same: what of it is the same in the pruned network.
    """

    func: Any
    name: str
    places: dict[str, tuple[int, Any]]
    rule: Rule | None
    shape: Callable[[Op], Any] | None
    writes: bool
    views: bool
    decomposes: bool
    same: Callable[[Op], Any]


_KNOWN: dict[int, OpInfo] = {}  # by the id of the operation, which stays as long as torch


def info_of(func: Any) -> OpInfo:
    """What is known of `func`; most work element by element, as torch's tags say, or a trial."""
    found = _KNOWN.get(id(func))
    if found is None:
        arguments = func._schema.arguments
        written = [a.alias_info is not None and a.alias_info.is_write for a in arguments]
        writes = written[:1] == [True]
        name = func._schema.name.rpartition("::")[2]
        name = name.removesuffix("_") if writes else name
        known = RULES.get(name)
        if known is None and _is_elementwise(func, name):
            known = RULES["elementwise"]
        elementwise = known is RULES["elementwise"]
        composite = torch._C._dispatch_has_kernel_for_dispatch_key(
            func.name(), "CompositeImplicitAutograd"
        )
        found = _KNOWN[id(func)] = OpInfo(
            func=func,
            name=name,
            places={a.name: (i, a.default_value) for i, a in enumerate(arguments)},
            rule=None if any(written[1:]) else known,
            shape=SHAPES["elementwise"] if elementwise and name not in RULES
            else None if writes else SHAPES.get(name),
            writes=writes,
            views=not writes and any(r.alias_info is not None for r in func._schema.returns),
            decomposes=known is None and composite,
            same=SAME.get(name, _settings),
        )  # fmt: skip
    return found


def _is_elementwise(func: Any, name: str) -> bool:
    """Whether torch tags it as pointwise, or its form that is not in place, or it proves so."""
    packet = getattr(torch.ops.aten, name, None)
    forms = [] if packet is None else [getattr(packet, each) for each in packet.overloads()]
    if any(torch.Tag.pointwise in form.tags for form in (func, *forms)):
        return True
    if sum("Tensor" in str(a.type) for a in func._schema.arguments) != 1:
        return False
    x = torch.tensor([[-4.0, -0.5, 0.3], [0.9, 2.0, 7.0]], device="cpu")
    try:
        apart = torch.stack([func(each.reshape(1).clone()).reshape(()) for each in x.flatten()])
        whole = func(x.clone())
        return whole.shape == x.shape and torch.equal(whole.flatten(), apart)
    except (RuntimeError, TypeError, AttributeError):
        return False


def layer_of(name: str) -> str:
    """The layer of a parameter, that of the weight where it is parametrized."""
    owner, parametrized, _ = name.partition(".parametrizations.")
    return owner if parametrized else name.rpartition(".")[0]
