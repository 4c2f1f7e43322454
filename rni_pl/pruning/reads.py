"""What a network's own code asks of its layers while it is traced, which no graph shows.

A size (``conv.out_channels``) is a plain number to `torch.fx`, and so stays what it was in the
graph of a network whose layer is cut; the mode (``self.training``) may decide what the code does.
"""

import dis
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from types import CodeType

from torch import nn

from rni_pl.pruning.surgery import SIZES


@dataclass
class Reads:
    """Layers whose sizes are read, by name, and whether the code goes by the mode."""

    sizes: set[str] = field(default_factory=set)
    mode: bool = False


class Mode(int):
    """False, as ``self.training`` is in evaluation; whoever goes by it is noted.

    Dropout that is merely told of it does nothing else in training, so that this is no matter.
    """

    note: Callable[[], None]

    def __new__(cls, note: Callable[[], None]) -> "Mode":
        """`note` is called whenever it is decided or calculated with."""
        mode = super().__new__(cls, False)
        mode.note = note
        return mode


def _noted(name: str) -> Callable:
    def method(mode: Mode, *others: object) -> object:
        mode.note()
        return getattr(int, name)(mode, *others)

    return method


for _name in (
    "bool", "int", "float", "index", "eq", "ne", "add", "radd", "sub", "rsub", "mul", "rmul",
    "and", "rand", "or", "ror", "xor", "rxor", "invert", "neg",
):  # fmt: skip
    setattr(Mode, f"__{_name}__", _noted(f"__{_name}__"))


@contextmanager
def noted(modules: Mapping[str, nn.Module], by_network: Callable[[], bool]) -> Iterator[Reads]:
    """Note what is read meanwhile, as long as `by_network` says that the network's code runs.

    For as long, the attributes are properties of their classes, with the values that layers have.
    """
    reads, names = Reads(), {module: name for name, module in modules.items()}

    def note_mode() -> None:
        reads.mode = True

    def seen_size(module: nn.Module, value: object) -> object:
        if by_network() and module in names:
            reads.sizes.add(names[module])
        return value

    def seen_mode(module: nn.Module, value: object) -> object:
        if value is not False or not by_network():
            return value
        if _tests_identity(sys._getframe(2).f_code):  # of the code that reads it
            note_mode()
            return value
        return Mode(note_mode)

    watched = [(kind, key, seen_size) for kind, keys in SIZES.items() for key in keys]
    watched.append((nn.Module, "training", seen_mode))
    for kind, key, seen in watched:
        setattr(kind, key, _watched(key, seen))
    try:
        yield reads
    finally:
        for kind, key, _ in watched:
            delattr(kind, key)


@cache
def _tests_identity(code: CodeType) -> bool:
    """Whether code may ask ``self.training is False``, which is not so of a `Mode`."""
    return any(instruction.opname == "IS_OP" for instruction in dis.get_instructions(code))


def _watched(key: str, seen: Callable[[nn.Module, object], object]) -> property:
    """An attribute that whoever reads it sees through a function."""

    def read(module: nn.Module) -> object:
        if key not in vars(module):
            raise AttributeError(key)  # a ScriptModule has it elsewhere
        return seen(module, vars(module)[key])

    def write(module: nn.Module, value: object) -> None:
        vars(module)[key] = value

    return property(read, write)
