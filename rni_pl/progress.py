"""What a user sees while something takes long: on a terminal, of the first process only."""

import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr
from typing import TypeVar

T = TypeVar("T")


def is_shown() -> bool:
    """Whether somebody watches this process."""
    return sys.stderr.isatty() and os.environ.get("LOCAL_RANK", "0") == "0"


def track(items: Iterable[T], what: str, total: int | None = None) -> Iterable[T]:
    """The items, with a bar of how many were taken; `total` where `items` has no length."""
    if not is_shown():
        return items
    from rich.console import Console
    from rich.progress import track as bar

    return bar(items, what, total, console=Console(stderr=True), transient=True)


@contextmanager
def busy(what: str) -> Iterator[Callable[[str], None]]:
    """A spinner and the time taken while a block lasts; what it gives says something new."""
    if not is_shown():
        yield lambda new: None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what)
        yield lambda new: progress.update(task, description=new, refresh=True)


@contextmanager
def others_bars() -> Iterator[None]:
    """While this lasts, what other libraries draw on stderr is seen where ours would be."""
    if is_shown():
        yield
        return
    with redirect_stderr(io.StringIO()):
        yield
