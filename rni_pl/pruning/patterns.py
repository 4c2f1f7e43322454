"""Layers by names and patterns: ``head``, ``blocks.*.conv1``."""

from collections.abc import Iterable
from difflib import get_close_matches
from fnmatch import fnmatchcase

from rni_pl.errors import PruningError


def matches(name: str, pattern: str) -> bool:
    """Whether a layer is, or is in, what a name or pattern (of `fnmatch`) stands for."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[: n + 1]), pattern) for n in range(len(parts)))


def check_pattern(setting: str, pattern: str, modules: Iterable[str]) -> None:
    """Raise `PruningError` where a pattern matches no module; the nearest names are said."""
    names = [name for name in modules if name]
    if any(fnmatchcase(name, pattern) for name in names):
        return
    near = get_close_matches(pattern, names, n=3, cutoff=0.4)
    hint = f"; nearest: {', '.join(near)}" if near else ""
    raise PruningError(f"{setting}={pattern!r} matches no layer of the network{hint}")
