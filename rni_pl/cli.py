"""The commands: Hydra in front, one line for every mistake."""

import os
import pickle
import sys
import traceback
from importlib import import_module
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from rni_pl import config as configuration
from rni_pl import earlier, sharing
from rni_pl.errors import RniError


def train() -> None:
    """Train a network with a sparsity regulariser."""
    _command("train")


def prune() -> None:
    """Prune a trained network and fine-tune it."""
    _command("prune")


def export() -> None:
    """Write a network to a file that runs elsewhere."""
    _tool("export", "rni_pl.export.exporting")


def benchmark() -> None:
    """Measure how much faster pruned networks are."""
    _tool("benchmark", "rni_pl.benchmark.comparing")


def _tool(name: str, home: str) -> None:
    """A command without a run directory: `run(config)` of module `home`."""
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        print(configuration.help_text(name))
        return
    try:
        config = configuration.compose_config(name, arguments)
        import_module(home).run(config)  # imports torch: only once the configuration is sound
    except (RniError, OSError) as error:
        _say(error)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _command(name: str) -> None:
    # Hydra then raises what it finds instead of printing it in many lines.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")

    mistakes: list[RniError] = []

    def task(config: DictConfig) -> float | None:
        sweeps = HydraConfig.get().mode == RunMode.MULTIRUN
        run_dir = Path(HydraConfig.get().runtime.output_dir)
        try:
            configuration.remember(config, name, HydraConfig.get().overrides.task)
            configuration.check(config)
            return _job(name, config, run_dir, sweeps)
        except RniError as error:
            _say(error)
            mistakes.append(error)
            if sweeps:
                raise  # the sweep goes on; its launcher brings this home, wherever the job ran
        except Exception as error:
            if sweeps:
                traceback.print_exc()
                raise _portable(error) from error
            raise
        finally:
            _remove_empty(run_dir)  # after a mistake, or where another directory or rank wrote
        return None

    decorate = hydra.main(
        version_base="1.3", config_path=configuration.config_dir(), config_name=name
    )
    try:
        with sharing.between_jobs():
            decorate(task)()
    except (HydraException, OmegaConfBaseException, OSError, RniError) as error:
        if error not in mistakes:  # those of a sweep in this process were said at once
            _say(error)
        sys.exit(2)
    if mistakes:
        sys.exit(2)


def _job(name: str, config: DictConfig, run_dir: Path, sweeps: bool) -> float | None:
    """Run a stage, or what is left of it to do; the validation accuracy that a search maximises."""
    existing = config.existing or ("continue" if sweeps else "replace")
    if existing == "continue" and config.resume is None:
        found = earlier.find(name, config, run_dir)
        if found and found.summary is not None:
            print(f"{run_dir} is finished: skipped", flush=True)
            return found.summary.get("val_acc")
        if found and found.can_go_on:
            config.resume = str(run_dir)
    from rni_pl import stages  # imports torch: only once the configuration is sound

    return stages.run(name, config, run_dir).summary["val_acc"]


def _portable(error: Exception) -> Exception:
    """The error itself, or one that says the same, if it does not survive a launcher's pickling."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _say(error: Exception) -> None:
    message = str(error) if isinstance(error, RniError) else configuration.one_line(error)
    print(f"error: {' '.join(message.split())}", file=sys.stderr)


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
