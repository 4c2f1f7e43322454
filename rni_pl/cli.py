"""The commands: Hydra in front, one line for every mistake."""

import os
import sys
from importlib import import_module
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from rni_pl import config as configuration
from rni_pl import sharing
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

    def task(config: DictConfig) -> None:
        run_dir = Path(HydraConfig.get().runtime.output_dir)
        try:
            configuration.remember(config, name, HydraConfig.get().overrides.task)
            configuration.check(config)
            from rni_pl import stages  # imports torch: only once the configuration is sound

            stages.run(name, config, run_dir)
            if config.resume is not None:
                _remove_empty(run_dir)  # the run went on in its own directory
        except RniError as error:
            _say(error)
            _remove_empty(run_dir)
            mistakes.append(error)  # a sweep goes on with its next job

    decorate = hydra.main(
        version_base="1.3", config_path=configuration.config_dir(), config_name=name
    )
    try:
        with sharing.between_jobs():
            decorate(task)()
    except (HydraException, OmegaConfBaseException, OSError) as error:
        _say(error)
        sys.exit(2)
    if mistakes:
        sys.exit(2)


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
