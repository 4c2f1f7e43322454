"""What the jobs of a sweep have in common, kept from one job to the next in the same process."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

T = TypeVar("T")

_kept: ContextVar[dict[str, tuple[Any, Any]] | None] = ContextVar("kept", default=None)


@contextmanager
def between_jobs() -> Iterator[None]:
    """While this lasts, `shared` keeps what it made; outside of it nothing is kept."""
    token = _kept.set({})
    try:
        yield
    finally:
        _kept.reset(token)


def shared(kind: str, key: Any, make: Callable[[], T]) -> T:
    """What `make` gives, made again only where `key` differs from the last of this `kind`."""
    kept = _kept.get()
    if kept is None:
        return make()
    if kind not in kept or kept[kind][0] != key:
        kept.pop(kind, None)  # frees the old one before the new one is made
        kept[kind] = (key, make())
    return kept[kind][1]
