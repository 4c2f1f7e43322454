"""The commands: Hydra in front, one line for every mistake."""

import logging
import os
import pickle
import sys
import threading
import warnings
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from rni_pl import config as configuration
from rni_pl import helping
from rni_pl.errors import ConfigError, Interrupted, RniError, StorageError, first_line
from rni_pl.files import CONFIG
from rni_pl.stages import sharing
from rni_pl.stages.interruption import behind, handled_by, stop

# What a user can cause and mend; anything else is a fault of ours, or of a network of the user's.
EXPECTED = (RniError, HydraException, OmegaConfBaseException, OSError)

# Whether the user asked for it, before a command here sets it.
TRACES = "HYDRA_FULL_ERROR" in os.environ


def train() -> None:
    """Train a network with a sparsity regulariser."""
    _main("train")


def prune() -> None:
    """Prune a trained network and fine-tune it."""
    _main("prune")


def export() -> None:
    """Write a network to a file that runs elsewhere."""
    _tool("export", "rni_pl.export.exporting")


def benchmark() -> None:
    """Measure how much faster pruned networks are."""
    _tool("benchmark", "rni_pl.latency.comparing")


def _tool(name: str, home: str) -> None:
    """A command without a run directory: `run(config)` of module `home`."""
    arguments = sys.argv[1:]
    if helping.FLAGS & set(arguments):
        print(helping.of_tool(name))
        return
    try:
        config = configuration.compose_config(name, arguments)
        tool = import_module(home)  # imports torch: only once the configuration is sound
        _warn_in_one_line()
        tool.run(config)
    except (RniError, OSError) as error:
        _say(error)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _main(name: str) -> None:
    status = _Command(name).run()
    if status:
        sys.exit(status)


@dataclass
class _Command:
    """A command under Hydra: one job, or those of a sweep.

    Attributes:
        name: of its configuration.
        status: what the command exits with, as far as it is known.
        begun: whether a job has begun, so that there was a configuration.
        told: errors of a sweep's jobs in this process, which were printed.
        traces: whether faults show where they are, as the user asked for it: `run` sets the
            variable for Hydra, and launchers hand that on to the processes of their jobs.
    """

    name: str
    status: int = 0
    begun: bool = False
    told: list[Exception] = field(default_factory=list)
    traces: bool = TRACES

    def run(self) -> int:
        """Do what the command line says; the status to exit with."""
        # Hydra then raises what it finds instead of printing it in many lines.
        os.environ.setdefault("HYDRA_FULL_ERROR", "1")
        # The logger writes in a thread; what goes wrong there is raised here as well.
        threading.excepthook = _unless_storage
        with handled_by(stop), sharing.between_jobs():
            try:
                self._print_help_or_run()
            except Exception as error:
                if error in self.told:
                    pass
                elif self.begun or isinstance(error, EXPECTED) or _is_of_a_job(error):
                    self._note(error)
                else:  # Hydra checks types with less care than we do
                    self._note(ConfigError(f"this makes no configuration: {first_line(error)}"))
        return self.status

    def _print_help_or_run(self) -> None:
        if helping.FLAGS & set(sys.argv[1:]):
            print(helping.of_command(self.name, sys.argv[1:]))
            return
        decorate = hydra.main(
            version_base="1.3", config_path=configuration.config_dir(), config_name=self.name
        )
        decorate(self._task)()

    def _task(self, config: DictConfig) -> float | None:
        """One job, as Hydra or one of its launchers calls it."""
        self.begun = True
        sweeps = HydraConfig.get().mode == RunMode.MULTIRUN
        try:
            return _run(self.name, config, Path(HydraConfig.get().runtime.output_dir), sweeps)
        except Exception as error:
            self._note(error)
            if not sweeps:
                return None
            self.told.append(_portable(error))
            # The sweep goes on; its launcher brings this home, wherever the job ran.
            raise self.told[-1] from error

    def _note(self, error: Exception) -> None:
        """Print an error in one line, and have the command exit with its status."""
        expected = isinstance(error, EXPECTED)
        if self.traces and not expected:
            raise error
        _say(error)
        self.status = max(self.status, 2 if expected else 1)


def _run(name: str, config: DictConfig, run_dir: Path, sweeps: bool) -> float | None:
    """One job, of which nothing is left behind where nothing was written."""
    try:
        configuration.remember(config, name, HydraConfig.get().overrides.task)
        configuration.check(config)
        return _job(name, config, run_dir, sweeps)
    except (Interrupted, Exception) as error:
        interrupted = behind(error)
        if interrupted:
            print(f"interrupted; {_way_on(config, run_dir)}", file=sys.stderr)
            raise interrupted from error
        if isinstance(error, StorageError):
            raise StorageError(f"{error}; {_way_on(config, run_dir)}") from error
        raise
    finally:
        _remove_empty(run_dir)  # after a mistake, or where another directory or rank wrote


def _log_into(run_dir: Path) -> None:
    """Point Hydra's log file, which is not open yet, to the run that goes on."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.baseFilename = str(run_dir.absolute() / Path(handler.baseFilename).name)


def _way_on(config: DictConfig, run_dir: Path) -> str:
    place = run_dir if config.resume is None else Path(config.resume)
    begun = (place / CONFIG).is_file()
    return f"go on with resume={place}" if begun else "nothing was saved yet"


def _job(name: str, config: DictConfig, run_dir: Path, sweeps: bool) -> float | None:
    """Run a stage, or what is left of it to do; the validation accuracy that a search maximises."""
    # These import torch: only once the configuration is sound.
    from rni_pl.stages import dispatch, earlier

    existing = config.existing or ("continue" if sweeps else "replace")
    if existing == "continue" and config.resume is None:
        found = earlier.find(name, config, run_dir)
        if found and found.summary is not None:
            print(f"{run_dir} is finished: skipped", flush=True)
            return found.summary.get("val_acc")
        if found and found.can_go_on:
            config.resume = str(run_dir)
    if config.resume is not None:
        _log_into(Path(config.resume))
    _warn_in_one_line()
    summary = dispatch.run(name, config, run_dir).summary
    _say_where(summary, run_dir if config.resume is None else Path(config.resume))
    return summary["val_acc"]


def _say_where(summary: dict[str, Any], run_dir: Path) -> None:
    """One line for the next command, from the first process alone."""
    from pytorch_lightning.utilities import rank_zero_only

    if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
        here = Path.cwd()
        place = run_dir.relative_to(here) if run_dir.is_relative_to(here) else run_dir
        reached = f"; test accuracy {summary['test_acc']:.2%}" if "test_acc" in summary else ""
        print(f"run directory: {place}{reached}", flush=True)


def _portable(error: Exception) -> Exception:
    """The error itself, or one that says the same, if it does not survive a launcher's pickling."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error._of_a_job = True  # type: ignore[attr-defined]  # pickled with it
    return error


def _is_of_a_job(error: Exception) -> bool:
    """Whether a job that ran in another process failed with this error."""
    return getattr(error, "_of_a_job", False)


def _say(error: Exception) -> None:
    message = str(error) if isinstance(error, RniError) else configuration.one_line(error)
    if not isinstance(error, EXPECTED):
        message = f"unexpected {type(error).__name__}: {message} (HYDRA_FULL_ERROR=1 shows where)"
    print(f"error: {' '.join(message.split())}", file=sys.stderr)


def _warn_in_one_line() -> None:
    """To be called behind all imports: Lightning sets a format of its own in its."""
    warnings.formatwarning = _one_line  # type: ignore[assignment]


def _one_line(message: Warning | str, *_: Any) -> str:
    return f"warning: {' '.join(str(message).split())}\n"


def _unless_storage(trouble: threading.ExceptHookArgs) -> None:
    if not issubclass(trouble.exc_type, OSError):
        threading.__excepthook__(trouble)


def _remove_empty(directory: Path) -> None:
    """Remove a run directory in which nothing was written, and parents that are empty then."""
    here = Path.cwd()
    for path in (directory, *directory.parents):
        if path == here or (not path.is_relative_to(here) and path != directory):
            return
        try:
            path.rmdir()
        except OSError:
            return
