"""Configuration: where it lives, composing it, and checking it before heavy imports."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rni_pl import naming
from rni_pl.errors import ConfigError, UnknownChoiceError
from rni_pl.files import CHECKPOINTS, own_directory
from rni_pl.rules import MAY_BE_NULL, PATHS, RULES, RULES_OF


def config_dir() -> str:
    """The folder of configuration files: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).resolve().parent
    inside = package / "conf"
    return str(inside if inside.is_dir() else package.parent / "conf")


def _path(given: Any) -> str:
    """A run as a name can be added to: without a slash at its end, or a checkpoint in it."""
    path = Path(os.path.normpath(str(given)))
    in_run = path.suffix == ".ckpt" and path.parent.name == CHECKPOINTS
    return str(path.parent.parent if in_run else path)


OmegaConf.register_new_resolver("path", _path, replace=True)
OmegaConf.register_new_resolver("own", own_directory, replace=True)


def remember(config: DictConfig, command: str, overrides: Sequence[str]) -> None:
    """Note in the configuration how it came about, so that a run can be resumed.

    A path that is a number, as the runs of a sweep are called, is made text again.
    """
    OmegaConf.set_struct(config, False)
    config.command, config.overrides = command, list(overrides)
    for key in PATHS:
        value = OmegaConf.select(config, key)
        if isinstance(value, int) and not isinstance(value, bool):
            OmegaConf.update(config, key, str(value))
    OmegaConf.set_struct(config, True)


def compose_config(name: str, overrides: Sequence[str], check_it: bool = True) -> DictConfig:
    """The configuration of command `name` with command-line style overrides.

    Searches the folders that the present command was given (``--config-dir``), too.

    Raises:
        ConfigError: an unknown key or choice, or a value out of range.
    """
    hydra = GlobalHydra.instance()
    outer = hydra.hydra
    given = _searchpath()
    hydra.clear()
    try:
        with initialize_config_dir(config_dir(), version_base="1.3"):
            config = compose(name, [*given, *overrides])
    except (HydraException, OmegaConfBaseException) as error:
        raise explained(error) from error
    finally:
        hydra.hydra = outer
    remember(config, name, overrides)
    if check_it:
        check(config)
    return config


def _searchpath() -> list[str]:
    """An override that searches the folders of settings that the present command was given."""
    if not HydraConfig.initialized():
        return []
    sources = HydraConfig.get().runtime.config_sources
    folders = [s.path for s in sources if s.schema == "file" and s.provider != "main"]
    quoted = [f'"file://{path}"' for path in folders]
    return [f"hydra.searchpath=[{','.join(quoted)}]"] if folders else []


def compose_group(group: str, choice: str) -> DictConfig:
    """One choice of a group, as a command would compose it (its interpolations unresolved).

    Raises:
        ConfigError: there is no such choice.
    """
    if not re.fullmatch(r"[\w-]+", choice):
        raise ConfigError(f"{group}={choice!r} is not the name of a configuration")
    try:
        if GlobalHydra.instance().is_initialized():
            return compose(overrides=[f"+{group}={choice}"])[group]
        with initialize_config_dir(config_dir(), version_base="1.3"):
            return compose(overrides=[f"+{group}={choice}"])[group]
    except (HydraException, OmegaConfBaseException) as error:
        raise explained(error) from error


def plain(node: DictConfig) -> dict[str, Any]:
    """A configuration node in plain values."""
    values = OmegaConf.to_container(node, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def explained(error: Exception) -> ConfigError:
    """What Hydra or OmegaConf found wrong, as an error of ours."""
    override = _unknown_choice(error)
    message = one_line(error)
    return UnknownChoiceError(message, override) if override else ConfigError(message)


def _unknown_choice(error: Exception) -> str | None:
    """The override that asked for a configuration that is not there."""
    if not (isinstance(error, MissingConfigException) and error.missing_cfg_file):
        return None
    group, _, choice = str(error.missing_cfg_file).rpartition("/")
    return f"{group or 'config'}={choice}"


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by their dotted names."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        inner = flat(value, f"{prefix}{key}.") if isinstance(value, dict) else None
        found.update(inner or {prefix + key: value})
    return found


def one_line(error: Exception) -> str:
    """What Hydra or OmegaConf found wrong, in one line that names the key and what is allowed."""
    override = _unknown_choice(error)
    if override:
        options = getattr(error, "options", None) or []
        allowed = ", ".join(option for option in options if option not in _BASES)
        hint = "; others come with an extra: docs/many-devices.md" if "hydra/" in override else ""
        return f"{override} is unknown; allowed: {allowed}{hint}"
    unknown = naming.unknown_override(error)
    if unknown:
        return unknown
    if isinstance(error, OverrideParseException) and "missing EQUAL" in str(error):
        return (
            f"{error.override!r} is no setting; settings are given as KEY=VALUE (--help has them)"
        )
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    key = getattr(error, "full_key", None)
    prefix = f"{key}: " if key and key not in (lines or [""])[0] else ""
    return prefix + " ".join(line for line in lines if not line.startswith(_NOISE))


_BASES = ("in_memory",)
_NOISE = ("object_type=", "full_key:", "Set the environment variable", "Config search path")


def check(config: DictConfig) -> None:
    """Raise `ConfigError` for the first value that is unknown, missing or out of range."""
    naming.check_top_level(config)
    inherits = OmegaConf.select(config, "data._target_", default="") is None
    resumes = OmegaConf.select(config, "resume", default=None) is not None
    rules = {**RULES, **RULES_OF.get(config.get("command", ""), {})}
    for key, rule in rules.items():
        if key == "checkpoint" and resumes:
            continue  # the run that goes on knows where it started from
        value = _select(config, key)
        if value is _ABSENT:
            continue
        if value is None and (key in MAY_BE_NULL or (inherits and key.startswith("data."))):
            continue
        if not rule.holds(value):
            raise ConfigError(f"{key}={value!r} is not allowed; allowed: {rule.words}")
    for key in sorted(OmegaConf.missing_keys(config) - ({"checkpoint"} if resumes else set())):
        raise ConfigError(_missing(key))
    naming.check_closed(config, rules)
    _check_together(config)


def _check_together(config: DictConfig) -> None:
    """Values that are allowed each, but not together."""
    if "trainer" not in config:
        return
    if config.optimizer.nesterov and not config.optimizer.momentum:
        raise ConfigError("optimizer.momentum=0 is not allowed with optimizer.nesterov=true")
    trainer = config.trainer
    every, epochs = trainer.check_val_every_n_epoch, trainer.max_epochs
    if every > epochs > 0:
        raise ConfigError(
            f"trainer.check_val_every_n_epoch={every} is not allowed with "
            f"trainer.max_epochs={epochs}: no epoch would be validated"
        )
    if (trainer.min_epochs or 0) > epochs:
        raise ConfigError(
            f"trainer.min_epochs={trainer.min_epochs} is not allowed with "
            f"trainer.max_epochs={epochs}"
        )


def _missing(key: str) -> str:
    in_file = "; in a file of data it is the name of that file" if key == "data.choice" else ""
    return f"{key} is missing: give it as {key}=VALUE{in_file}"


_ABSENT = object()


def _select(config: DictConfig, key: str) -> Any:
    try:
        value = OmegaConf.select(config, key, default=_ABSENT, throw_on_missing=True)
    except OmegaConfBaseException as error:
        if "Missing mandatory value" in str(error):
            raise ConfigError(_missing(key)) from error
        raise explained(error) from error
    if OmegaConf.is_config(value):
        return OmegaConf.to_container(value, resolve=True)
    return value
