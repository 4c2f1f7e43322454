"""What a network's own code asks of its layers while it is traced, which no graph shows.

A size (``conv.out_channels``) is a plain number to `torch.fx`, and so stays what it was in the
graph of a network whose layer is cut; the mode (``self.training``) may decide what the code does.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import nn

from rni_pl.pruning.surgery import SIZES


@dataclass
class Reads:
    """Layers whose sizes are read, by name, and whether the code asks for the mode."""

    sizes: set[str] = field(default_factory=set)
    mode: bool = False


@contextmanager
def noted(modules: Mapping[str, nn.Module], by_network: Callable[[], bool]) -> Iterator[Reads]:
    """Note what is read meanwhile, as long as `by_network` says that the network's code runs.

    For as long, the attributes are properties of their classes, with the values that layers have.
    """
    reads, names = Reads(), {module: name for name, module in modules.items()}

    def note_size(module: nn.Module) -> None:
        if by_network() and module in names:
            reads.sizes.add(names[module])

    def note_mode(module: nn.Module) -> None:
        reads.mode |= by_network()

    watched = [(kind, key, note_size) for kind, keys in SIZES.items() for key in keys]
    watched.append((nn.Module, "training", note_mode))
    for kind, key, note in watched:
        setattr(kind, key, _noting(key, note))
    try:
        yield reads
    finally:
        for kind, key, _ in watched:
            delattr(kind, key)


def _noting(key: str, note: Callable[[nn.Module], None]) -> property:
    """An attribute that is noted when it is read."""

    def read(module: nn.Module) -> object:
        note(module)
        if key not in vars(module):
            raise AttributeError(key)  # a ScriptModule has it elsewhere
        return vars(module)[key]

    def write(module: nn.Module, value: object) -> None:
        vars(module)[key] = value

    return property(read, write)
