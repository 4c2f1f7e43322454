"""Operations of torch as a run sees them, and the registry of rules for what they do to channels.

What is known of an operation comes from torch itself, from its schema and its tags, wherever it
says so; rules are registered by the operation's name.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType
from typing import Any

import torch
from torch import Tensor

from rni_pl.pruning.ids import Label


class Misfit(Exception):
    """An operation that does not fit the channels kept."""


class Op:
    """An operation that is carried out.

    Attributes:
        info: what is known of it.
        args, kwargs: its arguments.
        tensors: those among them, flattened.
        settings: the others.
        out: its result.
    """

    __slots__ = ("args", "info", "kwargs", "out", "settings", "tensors")

    def __init__(self, info: "OpInfo", args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self.info, self.args, self.kwargs = info, args, kwargs
        self.out: Any = None
        self.tensors: list[Tensor] = []
        self.settings: list[Any] = []
        for value in (*args, *kwargs.values()) if kwargs else args:
            if isinstance(value, Tensor):
                self.tensors.append(value)
            elif isinstance(value, list | tuple) and any(isinstance(v, Tensor) for v in value):
                self.tensors += [v for v in value if isinstance(v, Tensor)]
            else:
                self.settings.append(list(value) if isinstance(value, tuple) else value)

    @property
    def name(self) -> str:
        """Without an overload, and without the underscore of in-place forms."""
        return self.info.name

    @property
    def func(self) -> Any:
        """The operation of torch."""
        return self.info.func

    def get(self, name: str, default: Any = None) -> Any:
        """An argument by its name in the schema."""
        place, preset = self.info.places.get(name, (-1, default))
        if 0 <= place < len(self.args):
            return self.args[place]
        return self.kwargs.get(name, preset)

    @property
    def outputs(self) -> list[Tensor]:
        """The tensors that it makes, flattened."""
        if isinstance(self.out, Tensor):
            return [self.out]
        made: Sequence[Any] = self.out if isinstance(self.out, list | tuple) else []
        return [x for x in made if isinstance(x, Tensor)]


@dataclass(slots=True, eq=False)
class Record:
    """What an operation did.

    Attributes:
        sources: of its tensors: numbers of operations, names of parameters, or constants.
        settings: its other arguments.
        line: of the network's own code.
        layer: whose parameters it uses.
        inputs: labels of its tensors.
        outputs: labels of its results.
        shapes: of its results.
        made: ids of channels that begin here.
        way: in which its rule treats it, where there are several.
        unclear: why its channels could not be followed.
    """

    func: Any
    name: str
    sources: list[Any]
    settings: list[Any]
    line: tuple[CodeType, int] | None
    layer: str
    inputs: list[Label | None]
    outputs: list[Label] = field(default_factory=list)
    shapes: list[torch.Size] = field(default_factory=list)
    made: list[Tensor] = field(default_factory=list)
    way: Any = None
    unclear: str = ""

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


Rule = Callable[[Any, Op], Any]  # (labels of the run, operation) -> label of each result
RULES: dict[str, Rule] = {}  # by the operation's name, in-place forms alike
# Results on tensors without content, where torch's own way to them takes long.
SHAPES: dict[str, Callable[[Op], Any]] = {}
SIZED: set[str] = set()  # operations whose numbers are sizes, seen in the ids that they give


def rule(*names: str, sized: bool = False) -> Callable[[Rule], Rule]:
    """Register what operations do to channels; `sized`: their numbers follow the channels."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        SIZED.update(names if sized else ())
        return function

    return register


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
        sized: its numbers follow the channels.
    """

    func: Any
    name: str
    places: dict[str, tuple[int, Any]]
    rule: Rule | None
    shape: Callable[[Op], Any] | None
    writes: bool
    views: bool
    decomposes: bool
    sized: bool


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
            sized=name in SIZED,
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
