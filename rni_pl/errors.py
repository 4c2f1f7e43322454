"""Errors a user can cause and mend; the commands print them as one line and exit with 2."""

import signal


class RniError(ValueError):
    """Base of every error that names a mistake in what the user gave."""


class ConfigError(RniError):
    """A configuration value is unknown or out of range."""


class UnknownChoiceError(ConfigError):
    """A group has no such configuration."""


class DataError(RniError):
    """A data set is missing, incomplete or damaged."""


class CheckpointError(RniError):
    """A checkpoint is missing, damaged, foreign or asks for code we do not run."""


class DamagedError(CheckpointError):
    """A checkpoint's bytes are not those that were written."""


class DivergenceError(RniError):
    """Training has left the finite numbers."""


class StorageError(RniError):
    """A run's files cannot be written."""


class PruningError(RniError):
    """A network cannot be pruned as asked."""


class NothingToPruneError(PruningError):
    """None of a network's channels can go."""


class ExportError(RniError):
    """A network cannot be exported as asked, or came out as something else."""


class BenchmarkError(RniError):
    """A benchmark cannot be run as asked."""


class LaunchError(RniError):
    """A process of a run was killed, or failed for a reason that it has printed."""


class Interrupted(SystemExit):
    """SIGINT or SIGTERM asked the run to stop; no mistake, and the exit status a shell expects."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signal = signal.Signals(signum)


def first_line(error: BaseException) -> str:
    """What an error says, cut to one line; its class where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
