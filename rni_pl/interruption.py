"""SIGINT and SIGTERM in the commands."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from rni_pl.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C, and what schedulers send


def stop(signum: int, frame: FrameType | None) -> NoReturn:
    """Stop at once: a signal handler."""
    raise Interrupted(signum)


@contextmanager
def handled_by(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """Give SIGINT and SIGTERM to `handler` meanwhile; where threads cannot, leave them alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.signal(signum, handler) for signum in SIGNALS}
    try:
        yield
    finally:
        for signum, old in before.items():
            signal.signal(signum, old)
