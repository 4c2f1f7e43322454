"""The commands: Hydra in front, one line for every mistake."""

import os
import sys
import threading
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig

from rni_pl import config as configuration
from rni_pl import helping
from rni_pl.errors import ConfigError, Interrupted, RniError, StorageError, first_line
from rni_pl.runs import stored
from rni_pl.runs.files import CONFIG, remove_empty
from rni_pl.saying import (
    EXPECTED,
    is_of_a_job,
    portable,
    print_long,
    say,
    unless_storage,
    warn_in_one_line,
)
from rni_pl.training import sharing
from rni_pl.training.signals import behind, handled_by, stop

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


def sensitivity() -> None:
    """Measure how much accuracy each layer's channels are worth."""
    _tool("sensitivity", "rni_pl.training.sensitivity")


def _tool(name: str, home: str) -> None:
    """A command without a run directory: `run(config)` of module `home`."""
    arguments = sys.argv[1:]
    if helping.FLAGS & set(arguments):
        print_long(helping.of_tool(name))
        return
    _find_modules_here()
    try:
        config = configuration.compose_config(name, arguments)
        tool = import_module(home)  # imports torch: only once the configuration is sound
        warn_in_one_line()
        tool.run(config)
    except (RniError, OSError) as error:
        say(error)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _main(name: str) -> None:
    _find_modules_here()
    status = _Command(name, configuration.at_home(sys.argv[1:])).run()
    if status:
        sys.exit(status)


def _find_modules_here() -> None:
    """Have modules in the working directory found by installed commands, too."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


@dataclass
class _Command:
    """A command under Hydra: one job, or those of a sweep.

    Attributes:
        name: of its configuration.
        arguments: of the command line.
        status: what the command exits with, as far as it is known.
        begun: whether a job has begun, so that there was a configuration.
        told: errors of a sweep's jobs in this process, which were printed.
        traces: whether faults show where they are, as the user asked for it: `run` sets the
            variable for Hydra, and launchers hand that on to the processes of their jobs.
    """

    name: str
    arguments: list[str]
    status: int = 0
    begun: bool = False
    told: list[Exception] = field(default_factory=list)
    traces: bool = TRACES

    def run(self) -> int:
        """Do what the command line says; the status to exit with."""
        # Hydra then raises what it finds instead of printing it in many lines.
        os.environ.setdefault("HYDRA_FULL_ERROR", "1")
        # The logger writes in a thread; what goes wrong there is raised here as well.
        threading.excepthook = unless_storage
        with handled_by(stop), sharing.between_jobs():
            try:
                self._help_or_run()
            except Exception as error:
                if error in self.told:
                    pass
                elif self.begun or isinstance(error, EXPECTED) or is_of_a_job(error):
                    self._note(error)
                else:  # Hydra checks types with less care than we do
                    self._note(ConfigError(f"this makes no configuration: {first_line(error)}"))
        return self.status

    def _help_or_run(self) -> None:
        if helping.FLAGS & set(self.arguments):
            print_long(helping.of_command(self.name, self.arguments))
        elif run_dir := self._resumed_directory():
            self._resume(run_dir)
        else:
            sys.argv[1:] = [*self.arguments, *_leave_out_of_names(self.arguments)]
            decorate = hydra.main(
                version_base="1.3", config_path=configuration.config_dir(), config_name=self.name
            )
            decorate(self._task)()

    def _resumed_directory(self) -> Path | None:
        """What ``resume=DIR`` among the arguments names; None: there is no such argument."""
        given = get_args_parser().parse_args(self.arguments)
        for override in OverridesParser.create().parse_overrides(given.overrides):
            if override.key_or_group != "resume" or override.is_delete():
                continue
            value = override.value()
            if value in (None, "auto", ""):
                continue
            if given.multirun or override.is_sweep_override():
                raise ConfigError(
                    f"{override.input_line} is for one run; a sweep (-m) with the same "
                    "hydra.sweep.dir goes on by itself"
                )
            return Path(str(value)).expanduser()
        return None

    def _resume(self, run_dir: Path) -> None:
        """Go on with the run in a directory: its own configuration, and what is given anew."""
        given = get_args_parser().parse_args(self.arguments)
        overrides = [
            one for one in given.overrides if one.lstrip("+").partition("=")[0] != "resume"
        ]
        self.begun = True
        run = stored.resumed(self.name, run_dir, overrides)
        configuration.check(run.config)
        if given.cfg:
            print_long(stored.to_yaml(run.config))
            return

        def job() -> dict[str, Any]:
            # These import torch: only once the configuration is sound.
            from rni_pl.runs import resume
            from rni_pl.training import launch

            warn_in_one_line()
            resume.vet(run)
            resume.check_epochs(run)
            return launch.run(self.name, run.config, run_dir).summary

        _job(job, run_dir)

    def _task(self, config: DictConfig) -> float | None:
        """One job, as Hydra or one of its launchers calls it."""
        self.begun = True
        sweeps = HydraConfig.get().mode == RunMode.MULTIRUN
        run_dir = Path(HydraConfig.get().runtime.output_dir)
        try:
            return self._begin(config, run_dir, sweeps)
        except Exception as error:
            self._note(error)
            if not sweeps:
                return None
            self.told.append(portable(error))
            # The sweep goes on; its launcher brings this home, wherever the job ran.
            raise self.told[-1] from error

    def _begin(self, config: DictConfig, run_dir: Path, sweeps: bool) -> float | None:
        """Begin a run, or go on with the one that `resume=auto` or a sweep finds.

        Returns the validation accuracy, which a search maximises.
        """

        def job() -> dict[str, Any]:
            configuration.complete(config, self.name, HydraConfig.get().overrides.task)
            configuration.check(config)
            _check_sweep(config, sweeps)
            if Path("~").absolute() in run_dir.parents:
                raise ConfigError(
                    "a directory in a file is not expanded: ~ is ${oc.env:HOME} there"
                )
            # These import torch: only once the configuration is sound.
            from rni_pl.runs import directory
            from rni_pl.training import launch

            warn_in_one_line()
            goes_on, config.resume = sweeps or config.resume == "auto", None
            if not config.overwrite:
                if not goes_on:
                    directory.refuse_a_run_in(run_dir)
                elif summary := directory.go_on_or_begin(config, run_dir):
                    print(f"{run_dir} is finished: skipped", flush=True)
                    return summary
            return launch.run(self.name, config, run_dir).summary

        return _job(job, run_dir).get("val_acc")

    def _note(self, error: Exception) -> None:
        """Print an error in one line, and have the command exit with its status."""
        expected = isinstance(error, EXPECTED)
        if self.traces and not expected:
            raise error
        say(error)
        self.status = max(self.status, 2 if expected else 1)


def _leave_out_of_names(arguments: list[str]) -> list[str]:
    """An override that has the jobs of a sweep named by the settings that vary, not by all."""
    given = get_args_parser().parse_args(arguments)
    if not given.multirun:
        return []
    parsed = OverridesParser.create().parse_overrides(given.overrides)
    same = [one.key_or_group for one in parsed if not one.is_sweep_override()]
    same = [key for key in same if not key.startswith("hydra")]
    return [f"hydra.job.config.override_dirname.exclude_keys=[{','.join(same)}]"] if same else []


def _check_sweep(config: DictConfig, sweeps: bool) -> None:
    """Refuse what would be passed over in silence outside of a sweep."""
    choices = HydraConfig.get().runtime.choices
    for group in ("hydra/launcher", "hydra/sweeper"):
        if not sweeps and choices.get(group) not in (None, "basic"):
            raise ConfigError(f"{group}={choices[group]} is for sweeps: give -m as well")


def _job(job: Any, run_dir: Path) -> dict[str, Any]:
    """What a job sums up, of which nothing is left behind where nothing was written."""
    try:
        summary = job()
    except (Interrupted, Exception) as error:
        begun = (run_dir / CONFIG).is_file()
        way_on = f"go on with resume={run_dir}" if begun else "nothing was saved yet"
        interrupted = behind(error)
        if interrupted:
            print(f"interrupted; {way_on}", file=sys.stderr)
            raise interrupted from error
        if isinstance(error, StorageError):
            raise StorageError(f"{error}; {way_on}") from error
        raise
    finally:
        remove_empty(run_dir)  # after a mistake, or where another rank wrote
    _say_where(summary, run_dir)
    return summary


def _say_where(summary: dict[str, Any], run_dir: Path) -> None:
    """One line for the next command, from the first process."""
    from pytorch_lightning.utilities import rank_zero_only

    if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
        here = Path.cwd()
        place = run_dir.relative_to(here) if run_dir.is_relative_to(here) else run_dir
        reached = f"; test accuracy {summary['test_acc']:.2%}" if "test_acc" in summary else ""
        print(f"run directory: {place}{reached}", flush=True)
