"""Settings that do not exist: refused, and the nearest that does is named."""

import re
from collections.abc import Iterable
from difflib import SequenceMatcher
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from rni_pl.errors import ConfigError

CLOSED = ("prune", "distill", "loss", "shrink")  # groups that have no setting but those with a rule
# Groups that take arguments of what they make.
OPEN = ("arch", "method", "data", "optimizer", "scheduler", "trainer", "logger", "callbacks")
_OF_BOTH = (
    "data", "optimizer", "scheduler", "trainer", "logger", "callbacks", "loss", "seed",
    "shorten", "compile", "resume", "overwrite", "allow",
)  # fmt: skip
SETTINGS: dict[str, tuple[str, ...]] = {  # what each command has at the top
    "train": ("arch", "method", *_OF_BOTH, "init", "shrink"),
    "prune": ("checkpoint", "prune", "distill", *_OF_BOTH),
    "export": ("checkpoint", "output", "allow", "align"),
    "sensitivity": (
        *("checkpoint", "allow", "data", "ratios", "share", "max_drop", "coupled", "seed"),
    ),
    "benchmark": (
        *("checkpoint", "allow", "engines", "batch", "threads"),
        *("align", "repeats", "json", "prune"),
    ),
}

# How alike two names have to be, from 0 to 1, for one to be taken for the other.
ALIKE = 0.6
NOTES = ("command", "overrides")  # what `config.remember` adds
STAGES = ("train", "prune")  # commands with groups of files to choose from
TITLES = {name: f"{name}.py" for name in STAGES}
TITLES |= {name: f"rni_pl.{name}" for name in ("export", "benchmark", "sensitivity")}
CHOICES = (
    "protocol",
    "experiment",
    "debug",
    "launch",
    "hparams_search",
)  # without a key of their own


def check_top_level(config: DictConfig) -> None:
    """Raise `ConfigError` for a key at the top that the command does not know.

    Those that a value of the user's refers to (``${name}``) are known.
    """
    command = config.get("command", "")
    if command not in SETTINGS:
        return
    for key in map(str, config):
        known = key in SETTINGS[command] or key in NOTES
        if not known and not _is_referred_to(key, config):
            raise ConfigError(_not_at_the_top(key, command, config))


def check_closed(config: DictConfig, allowed: Iterable[str]) -> None:
    """Raise `ConfigError` for a key within a group that has none but the allowed."""
    for group in CLOSED:
        names = [name for name in allowed if name.startswith(f"{group}.")]
        for name in OmegaConf.select(config, group, default=None) or ():
            key = f"{group}.{name}"
            if key not in names:
                raise ConfigError(
                    f"{key} is unknown{_hint(key, config)}; allowed: {', '.join(names)}"
                )


def unknown_override(error: Exception) -> str | None:
    """What to say where Hydra found that an override sets what is not there; None: of others."""
    found = re.match(r"Could not override '([^']+)'\.(.*)To append .* use (.*)", str(error), re.S)
    if found is None or found[1].startswith("hydra"):
        return None
    key, added = found[1], found[3].strip()
    if "defaults list" in found[2]:  # a group of files that the command does not choose from
        others = _who_have(key, STAGES)
        return f"{key} is no group of this command" + (f", but of {others}" if others else "")
    node = getattr(error.__cause__, "parent_node", None)
    return None if node is None else _not_there(key, added, node._get_root())


def _not_there(key: str, added: str, config: DictConfig) -> str:
    parent = key.rpartition(".")[0]
    inner = OmegaConf.select(config, parent, default=None) if parent else None
    if not isinstance(inner, DictConfig) or not inner:
        return _not_at_the_top(key, _command_of(config), config)
    allowed = ", ".join(map(str, inner))
    message = f"{key} is unknown{_hint(key, config)}; allowed under {parent}: {allowed}"
    if key.partition(".")[0] in OPEN:
        message += f"; what else its class or function takes is added: {added}"
    return message


def nearest(key: str, names: Iterable[str]) -> str | None:
    """The name whose last part is most like that of `key`, the first of equals, if any is."""

    def likeness(name: str) -> float:
        part = 0.1 * (_last(key) in _last(name))
        return part + SequenceMatcher(None, _last(key), _last(name)).ratio()

    best = max(names, key=likeness, default=None)
    return best if best is not None and likeness(best) >= ALIKE else None


def _last(name: str) -> str:
    return name.rpartition(".")[2].lower()


def _not_at_the_top(key: str, command: str, config: DictConfig) -> str:
    names = [str(name) for name in config if name not in ("hydra", *NOTES)]
    allowed = ", ".join(SETTINGS.get(command, names))
    others = _who_have(key, STAGES if command in STAGES else tuple(SETTINGS))
    if others and command and key.partition(".")[0] not in SETTINGS[command]:
        also = " (an experiment may bring it)" if command in STAGES else ""
        whose = f"is a setting of {others}, not of {TITLES[command]}{also}"
        return f"{key} {whose}; allowed: {allowed}"
    return f"{key} is unknown{_hint(key, config)}; allowed: {allowed}"


def _who_have(key: str, commands: Iterable[str]) -> str:
    first = key.partition(".")[0]
    return " and ".join(TITLES[name] for name in commands if first in SETTINGS[name])


def _hint(key: str, config: DictConfig) -> str:
    ours = SETTINGS.get(_command_of(config), ())
    values = OmegaConf.to_container(config, resolve=False)
    assert isinstance(values, dict)
    values = {name: values[name] for name in ours if name in values}  # no other misspelt ones
    names = [*_nested(values), *(CHOICES if "trainer" in ours else ())]
    if "." in key:
        names = [name for name in names if "." in name]
    found = nearest(key, [name for name in names if name != key])
    return f"; the nearest setting is {found}" if found else ""


def _command_of(config: DictConfig) -> str:
    """The command that a configuration is of, also before that is noted in it."""
    if "command" in config:
        return str(config.command)
    full = [name for name, keys in SETTINGS.items() if set(keys) <= set(map(str, config))]
    return full[0] if full else ""


def _nested(values: dict[Any, Any], prefix: str = "") -> list[str]:
    names = []
    for key, value in values.items():
        names.append(f"{prefix}{key}")
        if isinstance(value, dict):
            names += _nested(value, f"{prefix}{key}.")
    return names


def _is_referred_to(key: str, config: DictConfig) -> bool:
    texts = [OmegaConf.to_yaml(config)]
    hydra = HydraConfig.instance().cfg
    if hydra is not None:  # the run directory may be called by it
        texts.append(OmegaConf.to_yaml(hydra))
    return any(re.search(rf"\$\{{{re.escape(key)}[.\[}}]", text) for text in texts)
