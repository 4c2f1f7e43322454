"""Errors a user can cause and mend; the commands print them as one line and exit with 2."""


class RniError(ValueError):
    """Base of every error that names a mistake in what the user gave."""


class ConfigError(RniError):
    """A configuration value is unknown or out of range."""


class DataError(RniError):
    """A data set is missing, incomplete or damaged."""


class CheckpointError(RniError):
    """A checkpoint is missing, damaged, foreign or asks for code we do not run."""


class DivergenceError(RniError):
    """Training has left the finite numbers."""


class PruningError(RniError):
    """A network cannot be pruned as asked."""


class ExportError(RniError):
    """A network cannot be exported as asked, or came out as something else."""


class BenchmarkError(RniError):
    """A benchmark cannot be run as asked."""


class LaunchError(RniError):
    """A process of a run was killed, or failed for a reason that it has printed."""


def first_line(error: BaseException) -> str:
    """What an error says, cut to one line; its class where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
