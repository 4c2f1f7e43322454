"""Configuration: where it lives, composing it, and checking it before heavy imports."""

import functools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobRuntime
from hydra.errors import HydraException
from hydra.version import VersionBase
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rni_pl import naming
from rni_pl.errors import ConfigError
from rni_pl.explaining import explained
from rni_pl.rules import MAY_BE_NULL, RULES, RULES_OF

# Settings of a run that are paths.
PATHS = ("checkpoint", "init", "data.root", "prune.plan")


def config_dir() -> str:
    """The folder of configuration files: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).resolve().parent
    inside = package / "conf"
    return str(inside if inside.is_dir() else package.parent / "conf")


def _run_of(given: Any) -> str:
    """The run directory that `checkpoint=` means, without a slash at its end or a file in it."""
    path = Path(os.path.normpath(Path(str(given)).expanduser()))
    in_run = path.suffix == ".ckpt" and path.parent.name == "checkpoints"
    return str(path.parent.parent if in_run else path)


# How many processes were started together, as launchers tell each of them.
_SIZES = ("WORLD_SIZE", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "JSM_NAMESPACE_SIZE")


@functools.cache
def own_directory(path: str) -> str:
    """A new directory with this name, or with a number behind it where another process has that.

    For names that hold the time to a second. Processes of one run, which others have started, share
    what they are given.
    """
    if any(os.environ.get(name, "1") != "1" for name in _SIZES):
        return path
    number, own = 1, path
    while True:
        try:
            Path(own).mkdir(parents=True)
        except FileExistsError:
            number += 1
            own = f"{path}_{number}"
        else:
            return own


# Penalties for the networks of the paper (arXiv 2204.06404, section 4); others have ResNet-56's.
PENALTIES: dict[str, dict[str, dict[str, float]]] = {
    "rni": {"resnet56": {"reg_weight": 1e-4, "shift": 0.0},
            "vgg16": {"reg_weight": 1e-3, "shift": 3.0}},
    "l1": {"resnet56": {"reg_weight": 1e-5}, "vgg16": {"reg_weight": 1e-4}},
    "polarization": {"resnet56": {"reg_weight": 1e-4}},
}  # fmt: skip


def arch_name(arch: Mapping[str, Any]) -> str:
    """``resnet56`` for ``rni_pl.models.resnet56``; what names the network, where a name does."""
    named = arch.get("model_name") or (
        arch.get("name") if arch["_target_"] == "torchvision.models.get_model" else None
    )
    return str(named or arch["_target_"].rpartition(".")[2])


def _penalty(method: str, key: str, arch: DictConfig, shorten: float = 1) -> float:
    """What a method has for a network in `PENALTIES`, times how much the schedule is shortened."""
    known = PENALTIES[method]
    name = "" if OmegaConf.missing_keys(arch) else arch_name(arch)
    return known.get(name.removesuffix("_bn"), known["resnet56"])[key] * shorten


def _folder(varying: str, number: Any) -> str:
    """The folder of a sweep's job, by the settings that vary; its number where none does."""
    name = re.sub(r"[^\w.-]+", "_", varying).strip("_")
    return name if 0 < len(name) <= 200 else str(number)


def _shortened(epochs: int, shorten: float) -> int:
    return max(1, round(epochs / shorten))


OmegaConf.register_new_resolver("penalty", _penalty, replace=True)
OmegaConf.register_new_resolver("shortened", _shortened, replace=True)
OmegaConf.register_new_resolver("folder", _folder, replace=True)
OmegaConf.register_new_resolver("path", _run_of, replace=True)
OmegaConf.register_new_resolver("own", own_directory, replace=True)


def complete(config: DictConfig, command: str, overrides: Sequence[str]) -> None:
    """Note in a composed configuration how it came about, and make the paths of a run absolute.

    A path that is a number, as the runs of a sweep may be called, becomes text.
    """
    OmegaConf.set_struct(config, False)
    config.command, config.overrides = command, list(overrides)
    OmegaConf.set_struct(config, True)
    for key in PATHS:
        if type(value := OmegaConf.select(config, key)) is int:
            OmegaConf.update(config, key, str(value))
    if command in naming.STAGES:
        absolute_paths(config)


def absolute_paths(config: DictConfig) -> None:
    """Have every path of a run begin at the root: it may be read again in another directory."""
    for key in PATHS:
        value = OmegaConf.select(config, key)
        if isinstance(value, str) and value and "\0" not in value:
            OmegaConf.update(config, key, os.path.abspath(Path(value).expanduser()))


def at_home(overrides: Sequence[str]) -> list[str]:
    """Overrides with ``~`` expanded where a value begins with it, which Hydra cannot parse."""
    home = os.path.expanduser("~")
    return [re.sub(r"(?<=[=,\[\"'])~(?=[/,\]\"']|$)", lambda _: home, one) for one in overrides]


def compose_config(name: str, overrides: Sequence[str], check_it: bool = True) -> DictConfig:
    """The configuration of command `name` with command-line style overrides.

    Searches the folders that the present command was given (``--config-dir``), too.

    Raises:
        ConfigError: an unknown key or choice, or a value out of range.
    """
    with _hydra_of_our_own():
        config = compose(name, [*_searchpath(), *at_home(overrides)])
    complete(config, name, overrides)
    if check_it:
        check(config)
    return config


def compose_group(group: str, choice: str) -> DictConfig:
    """One choice of a group, as a command would compose it (its interpolations unresolved).

    Raises:
        ConfigError: there is no such choice.
    """
    if not re.fullmatch(r"[\w-]+", choice):
        raise ConfigError(f"{group}={choice!r} is not the name of a configuration")
    with _hydra_of_our_own():
        return compose(overrides=[*_searchpath(), f"+{group}={choice}"])[group]


@contextmanager
def _hydra_of_our_own() -> Iterator[None]:
    """Compose from our `conf/`; a Hydra that the user has initialised is back afterwards."""
    kinds = (GlobalHydra, VersionBase, JobRuntime)
    others = {kind: Singleton._instances.pop(kind, None) for kind in kinds}
    try:
        with initialize_config_dir(config_dir(), version_base="1.3"):
            yield
    except (HydraException, OmegaConfBaseException) as error:
        raise explained(error) from error
    finally:
        for kind, other in others.items():
            Singleton._instances.pop(kind, None)
            if other is not None:
                Singleton._instances[kind] = other


def _searchpath() -> list[str]:
    """An override that searches the folders of settings that the present command was given."""
    if not HydraConfig.initialized():
        return []
    sources = HydraConfig.get().runtime.config_sources
    folders = [s.path for s in sources if s.schema == "file" and s.provider != "main"]
    quoted = [f'"file://{path}"' for path in folders]
    return [f"hydra.searchpath=[{','.join(quoted)}]"] if folders else []


def plain(node: DictConfig) -> dict[str, Any]:
    """A configuration node in plain values."""
    values = OmegaConf.to_container(node, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by their dotted names."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        inner = flat(value, f"{prefix}{key}.") if isinstance(value, dict) else None
        found.update(inner or {f"{prefix}{key}": value})
    return found


def check(config: DictConfig) -> None:
    """Raise `ConfigError` for the first value that is unknown, missing or out of range."""
    naming.check_top_level(config)
    inherits = OmegaConf.select(config, "data._target_", default="") is None
    command = config.get("command", "")
    rules = {**RULES, **RULES_OF.get(command, {})}
    may_be_null = MAY_BE_NULL | ({"checkpoint"} if command == "prune" else set())  # from Python
    for key, rule in rules.items():
        value = _select(config, key)
        if value is _ABSENT:
            continue
        if value is None and (key in may_be_null or (inherits and key.startswith("data."))):
            continue
        if not rule.holds(value):
            raise ConfigError(f"{key}={value!r} is not allowed; allowed: {rule.words}")
    for key in sorted(OmegaConf.missing_keys(config)):
        raise ConfigError(_missing(key))
    naming.check_closed(config, rules)
    _check_together(config)


def _check_together(config: DictConfig) -> None:
    """Values that are allowed each, but not together."""
    if "trainer" not in config:
        return
    trainer = config.trainer
    every, epochs = trainer.check_val_every_n_epoch, trainer.max_epochs
    if every > epochs > 0:
        raise ConfigError(
            f"trainer.check_val_every_n_epoch={every} is not allowed with "
            f"trainer.max_epochs={epochs}: no epoch would be validated"
        )
    if "prune" in config and config.prune.steps > 1:
        _check_steps(config)
    if (trainer.min_epochs or 0) > epochs:
        raise ConfigError(
            f"trainer.min_epochs={trainer.min_epochs} is not allowed with "
            f"trainer.max_epochs={epochs}"
        )


def _check_steps(config: DictConfig) -> None:
    prune, epochs = config.prune, config.trainer.max_epochs
    last = (prune.steps - 1) * prune.epochs_per_step
    if last >= epochs > 0:
        raise ConfigError(
            f"prune.steps={prune.steps} with prune.epochs_per_step={prune.epochs_per_step} is not "
            f"allowed with trainer.max_epochs={epochs}: the last step comes after {last} epochs"
        )
    if isinstance(prune.ratio, str) or prune.plan is not None:
        raise ConfigError(f"prune.steps={prune.steps} needs prune.ratio as a number")


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
