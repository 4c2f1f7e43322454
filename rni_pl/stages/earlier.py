"""A run that is in its directory already: finished, interrupted, or another one."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from rni_pl import config as configuration
from rni_pl.errors import ConfigError
from rni_pl.files import CONFIG, SUMMARY
from rni_pl.stages.resume import has_checkpoint, has_same_weights, read_run

# Settings of one command, in which a run and its repetition may differ.
NOT_COMPARED = ("command", "overrides", "resume", "existing", "allow")


@dataclass(frozen=True)
class Earlier:
    """What is left of a run: the summary if it is finished; whether it can go on if it is not."""

    summary: dict[str, Any] | None
    can_go_on: bool


def find(command: str, config: DictConfig, run_dir: Path) -> Earlier | None:
    """The run that `run_dir` holds of this very configuration, if it holds one.

    Raises:
        ConfigError: it holds one of another configuration, or what is there cannot be read.
    """
    if not (run_dir / CONFIG).is_file():
        return None
    stored, overrides = read_run(command, config, run_dir)
    there = _values(configuration.compose_config(command, overrides, check_it=False))
    here = _values(config)
    if "checkpoint" in here:
        there["checkpoint"] = stored.get("checkpoint")
        here["checkpoint"] = os.path.abspath(here["checkpoint"])
        if has_same_weights(here["checkpoint"], run_dir):
            there["checkpoint"] = here["checkpoint"]  # wherever it was then
    differ = [key for key in here | there if here.get(key) != there.get(key)]
    if differ:
        found = ", ".join(f"{key}={there.get(key)!r} there" for key in differ[:3])
        raise ConfigError(
            f"{run_dir} holds a run of another configuration ({found}); choose another directory, "
            "or existing=replace"
        )
    return Earlier(_summary(run_dir), has_checkpoint(run_dir))


def _summary(run_dir: Path) -> dict[str, Any] | None:
    try:
        return json.loads((run_dir / SUMMARY).read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ConfigError(f"{run_dir / SUMMARY} is damaged; delete it to go on") from error


def _values(config: DictConfig) -> dict[str, Any]:
    """All values by their dotted names, but for those of one command."""
    values = configuration.plain(config)
    return configuration.flat(
        {key: value for key, value in values.items() if key not in NOT_COMPARED}
    )
