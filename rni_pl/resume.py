"""Going on with a run: its configuration is composed anew from the choices it was started with.

A run directory may come from anywhere, so nothing in it is trusted: of its `config.yaml` only
the list of overrides counts, and an override may pick configurations of ours and plain values, but
name no code except a trusted network.
"""

import re
from collections.abc import Collection
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf

from rni_pl import config as configuration
from rni_pl.errors import ConfigError

# Overrides that concern one command, not the run.
OF_ONE_COMMAND = re.compile(r"[+~]*(resume|existing|allow|launch|search|hydra)\b")


def last_checkpoint(config: DictConfig) -> Path | None:
    """The `last.ckpt` that a run goes on from, if it does."""
    if config.resume is None:
        return None
    last = Path(config.resume) / "checkpoints" / "last.ckpt"
    if not last.is_file():
        raise ConfigError(f"resume={config.resume} holds no checkpoints/last.ckpt")
    return last


def resumed_config(command: str, config: DictConfig) -> DictConfig:
    """The configuration of the run at `config.resume`, with what was given anew.

    Raises:
        ConfigError: there is no such run, it is of another command, or an override is not trusted.
        CheckpointError: its network is not trusted, nor allowed by this command.
    """
    last_checkpoint(config)
    run_dir = Path(config.resume)
    stored, overrides = read_run(command, config, run_dir)
    given = [item for item in config.overrides if not OF_ONE_COMMAND.match(item)]
    merged = configuration.compose_config(command, [*overrides, *given], check_it=False)
    OmegaConf.update(merged, "resume", str(config.resume))
    OmegaConf.update(merged, "allow", list(config.allow))
    if command == "prune" and isinstance(stored.get("checkpoint"), str):
        OmegaConf.update(merged, "checkpoint", stored["checkpoint"])
    configuration.check(merged)
    return merged


def read_run(command: str, config: DictConfig, run_dir: Path) -> tuple[dict, list[str]]:
    """What `config.yaml` of a run directory holds, and of the overrides in it those of the run.

    Raises:
        ConfigError: see `resumed_config`.
    """
    stored = _read(run_dir)
    if stored.get("command") != command:
        raise ConfigError(f"{run_dir} holds no run of {command}.py")
    overrides = [str(item) for item in stored.get("overrides") or []]
    overrides = [item for item in overrides if not OF_ONE_COMMAND.match(item)]
    for item in overrides:
        _vet(item, config, run_dir)
    return stored, overrides


def _read(run_dir: Path) -> dict:
    try:
        stored = yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{run_dir} holds no sound config.yaml") from error
    if not isinstance(stored, dict):
        raise ConfigError(f"{run_dir} holds no sound config.yaml")
    return stored


def _vet(item: str, config: DictConfig, run_dir: Path) -> None:
    key, _, value = item.partition("=")
    key = key.lstrip("+~")
    groups = {path.name for path in Path(configuration.config_dir()).iterdir() if path.is_dir()}
    if key == "arch._target_":
        from rni_pl.models.build import check_trusted  # imports torch

        check_trusted({"_target_": value}, _allowed(config.allow, config.overrides))
        return
    elsewhere = key in groups and not re.fullmatch(r"[\w-]+", value)
    if elsewhere or re.search(r"\b_\w+_\b", item) or "/" in key or "@" in key:
        raise ConfigError(f"{run_dir}: {item!r} in its config.yaml is not trusted")


def _allowed(allow: Collection[str], given: Collection[str]) -> list[str]:
    """Networks that this very command allows, or names."""
    named = [item.partition("=")[2] for item in given if item.startswith("arch._target_=")]
    return [*allow, *named]
