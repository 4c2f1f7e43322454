"""SIGINT and SIGTERM in the commands."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from rni_pl.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C, and what schedulers send


_received: list[int] = []  # signals that asked to stop at once


def stop(signum: int, frame: FrameType | None) -> NoReturn:
    """Stop at once: a signal handler."""
    _received.append(signum)
    raise Interrupted(signum)


def behind(error: BaseException) -> Interrupted | None:
    """The interruption that an error is, or that some library's code made another error of."""
    if isinstance(error, Interrupted):
        return error
    if _received and isinstance(error, Exception):
        return Interrupted(_received[-1])
    return None


@contextmanager
def handled_by(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """Give SIGINT and SIGTERM to `handler` meanwhile; where threads cannot, leave them alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _received.clear()
    before = {signum: signal.signal(signum, handler) for signum in SIGNALS}
    try:
        yield
    finally:
        for signum, old in before.items():
            signal.signal(signum, old)
