"""The configuration that a run has stored: read back, merged with what a command gives, compared.

A run directory may come from anywhere: its `config.yaml` is read as plain values. What it names to
be called is vetted in `resume`, before anything is built from it. No torch is needed here.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rni_pl.config import absolute_paths, flat, plain
from rni_pl.errors import ConfigError
from rni_pl.explaining import explained
from rni_pl.runs.files import CONFIG

# Settings of one command, which are no part of the run.
OF_ONE_COMMAND: dict[str, Any] = {"resume": None, "overwrite": False, "allow": []}
# Settings that made a run's network, or say what a step and an epoch of it are.
SETTLED = (
    "arch.", "prune.", "data.", "method._target_", "optimizer._target_", "scheduler._target_",
    "init", "seed",
    "trainer.accumulate_grad_batches", "trainer.limit_train_batches",
)  # fmt: skip
# Of these, what says only where the images are and how they are read.
MOVABLE = {"data.root", "data.workers", "data.eval_batch_size", "data.check_files"}


@dataclass
class Resumed:
    """A run's own configuration with what a command gives anew.

    Attributes:
        config: both merged.
        given: dotted names of the settings that the command gives.
        targets: names of classes and functions among its values.
    """

    config: DictConfig
    given: set[str] = field(default_factory=set)
    targets: set[str] = field(default_factory=set)


def to_yaml(config: DictConfig) -> str:
    """What a run stores: every setting as it is used, without those of one command."""
    kept = {key: value for key, value in plain(config).items() if key not in OF_ONE_COMMAND}
    return OmegaConf.to_yaml(OmegaConf.create(kept))


def read(command: str, run_dir: Path) -> dict[str, Any]:
    """The values in a run's `config.yaml`.

    Raises:
        ConfigError: there is none, it is damaged, of another command, or refers to other values.
    """
    try:
        stored = yaml.safe_load((run_dir / CONFIG).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{run_dir} holds no sound {CONFIG}") from error
    if not isinstance(stored, dict) or not all(isinstance(key, str) for key in stored):
        raise ConfigError(f"{run_dir} holds no sound {CONFIG}")
    if stored.get("command") != command:
        raise ConfigError(f"{run_dir} holds no run of {command}.py")
    for key, value in flat(stored).items():
        if "${" in str(value):  # it was resolved when it was written
            raise ConfigError(f"{run_dir}/{CONFIG}: {key}={value!r} is no plain value; refused")
    return {key: value for key, value in stored.items() if key not in OF_ONE_COMMAND}


def resumed(command: str, run_dir: Path, overrides: Sequence[str]) -> Resumed:
    """The run in `run_dir` with the command line's overrides, which Hydra itself applies.

    Raises:
        ConfigError: there is no such run, or an override is not allowed for a run that has begun.
    """
    if not run_dir.is_dir():
        raise ConfigError(f"resume={run_dir} is no directory of a run")
    before = read(command, run_dir)
    config = OmegaConf.create({**before, **OF_ONE_COMMAND})
    OmegaConf.set_struct(config, True)
    found = Resumed(config)
    try:
        for override in OverridesParser.create().parse_overrides(list(overrides)):
            _check_override(override, config)
            ConfigLoaderImpl._apply_overrides_to_config([override], config)
            found.given.add(override.key_or_group)
            values = {override.key_or_group: override.value()}
            found.targets.update(target for _, target in targets(values))
    except (HydraException, OmegaConfBaseException) as error:
        raise explained(error) from error
    config.resume = str(run_dir)
    absolute_paths(config)
    _check_settled(before, plain(config))
    return found


def _check_override(override: Override, config: DictConfig) -> None:
    """Refuse what is no single setting of a run that has begun."""
    key, line = override.key_or_group, str(override.input_line)
    if override.is_sweep_override():
        raise ConfigError(f"{line} is for sweeps (-m); resume=DIR goes on with one run")
    if key.partition(".")[0].partition("/")[0] == "hydra":
        raise ConfigError(f"{line} is not allowed with resume=DIR: a run stays in its directory")
    group = OmegaConf.select(config, key) if key in config else None
    if isinstance(group, DictConfig) and not isinstance(override.value(), dict):
        example = next((n for n in map(str, group) if not n.startswith("_")), "SETTING")
        raise ConfigError(
            f"{line} is not allowed with resume=DIR, which has a {key} already; give its settings "
            f"one by one, such as {key}.{example}=VALUE"
        )


def _check_settled(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    there, here = flat(before), flat(now)
    for key in [*there, *here]:
        settled = key.startswith(SETTLED) and key not in MOVABLE
        if settled and there.get(key) != here.get(key):
            raise ConfigError(
                f"resume= cannot change {key} from {there.get(key)!r} to {here.get(key)!r}: it is "
                "settled in a run that has begun; start a new run"
            )


def differences(config: DictConfig, stored: Mapping[str, Any]) -> list[str]:
    """How a stored run differs from what a command would run: ``optimizer.lr=0.1 there``.

    Data that fine-tuning inherits are not known before the network is read, and not compared.
    """
    left_out = {*OF_ONE_COMMAND, "overrides", "checkpoint"}
    here = {key: value for key, value in plain(config).items() if key not in left_out}
    there = {key: value for key, value in stored.items() if key not in left_out}
    inherits = isinstance(here.get("data"), dict) and here["data"].get("_target_") is None
    here, there = flat(here), flat(there)
    keys = [
        key for key in {**here, **there}
        if not (inherits and key.startswith("data.") and here.get(key) is None)
    ]  # fmt: skip
    return [f"{key}={there.get(key)!r} there" for key in keys if here.get(key) != there.get(key)]


def targets(values: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every ``_target_`` in nested values, with the dotted name of what holds it."""
    if isinstance(values, dict):
        for key, value in values.items():
            inside, _, name = str(key).rpartition(".")
            if name == "_target_" and value is not None:
                yield f"{place}{inside}".rstrip("."), value
            yield from targets(value, f"{place}{key}.")
    elif isinstance(values, list):
        for value in values:
            yield from targets(value, place)


def same_path(one: Any, other: Any) -> bool:
    """Whether two values are the same path."""
    return os.path.abspath(str(one)) == os.path.abspath(str(other))
