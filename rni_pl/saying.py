"""What a command prints: one line for every mistake and every warning."""

import os
import pickle
import sys
import threading
import warnings
from typing import Any

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from rni_pl.errors import RniError
from rni_pl.explaining import one_line

# What a user can cause and mend; anything else is a fault of ours, or of a network of the user's.
EXPECTED = (RniError, HydraException, OmegaConfBaseException, OSError)


def print_long(text: str) -> None:
    """Print what may be long, to a reader that may stop reading: ``--help | head``."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what exit flushes


def portable(error: Exception) -> Exception:
    """The error itself, or one that says the same, if it does not survive a launcher's pickling."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error._of_a_job = True  # type: ignore[attr-defined]  # pickled with it
    return error


def is_of_a_job(error: Exception) -> bool:
    """Whether a job that ran in another process failed with this error."""
    return getattr(error, "_of_a_job", False)


def say(error: Exception) -> None:
    """An error, in one line."""
    message = str(error) if isinstance(error, RniError) else one_line(error)
    if not isinstance(error, EXPECTED):
        message = f"unexpected {type(error).__name__}: {message} (HYDRA_FULL_ERROR=1 shows where)"
    print(f"error: {' '.join(message.split())}", file=sys.stderr)


def warn_in_one_line() -> None:
    """To be called behind all imports: Lightning sets a format of its own in its."""
    warnings.formatwarning = _formatted  # type: ignore[assignment]


def _formatted(message: Warning | str, *_: Any) -> str:
    return f"warning: {' '.join(str(message).split())}\n"


def unless_storage(trouble: threading.ExceptHookArgs) -> None:
    """A hook of threads: what cannot be written is raised in the main one as well."""
    if not issubclass(trouble.exc_type, OSError):
        threading.__excepthook__(trouble)
