"""Configuration: where it lives, composing it, and checking it before heavy imports."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rni_pl.errors import ConfigError


def config_dir() -> str:
    """The folder of configuration files: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).resolve().parent
    inside = package / "conf"
    return str(inside if inside.is_dir() else package.parent / "conf")


def remember(config: DictConfig, command: str, overrides: Sequence[str]) -> None:
    """Note in the configuration how it came about, so that a run can be resumed."""
    OmegaConf.set_struct(config, False)
    config.command, config.overrides = command, list(overrides)
    OmegaConf.set_struct(config, True)


def compose_config(name: str, overrides: Sequence[str], check_it: bool = True) -> DictConfig:
    """The configuration of command `name` with command-line style overrides.

    Raises:
        ConfigError: an unknown key or choice, or a value out of range.
    """
    hydra = GlobalHydra.instance()
    outer = hydra.hydra
    hydra.clear()
    try:
        with initialize_config_dir(config_dir(), version_base="1.3"):
            config = compose(name, list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(one_line(error)) from error
    finally:
        hydra.hydra = outer
    remember(config, name, overrides)
    if check_it:
        check(config)
    return config


def help_text(name: str) -> str:
    """The settings of a command that has no groups: its configuration file, comments and all."""
    return (Path(config_dir()) / f"{name}.yaml").read_text().rstrip()


def compose_group(group: str, choice: str) -> DictConfig:
    """One choice of a group, as a command would compose it (its interpolations unresolved).

    Raises:
        ConfigError: there is no such choice.
    """
    if not re.fullmatch(r"[\w-]+", choice):
        raise ConfigError(f"{group}={choice!r} is not the name of a configuration")
    try:
        if GlobalHydra.instance().is_initialized():
            return compose(f"{group}/{choice}")[group]
        with initialize_config_dir(config_dir(), version_base="1.3"):
            return compose(f"{group}/{choice}")[group]
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(one_line(error)) from error


def plain(node: DictConfig) -> dict[str, Any]:
    """A configuration node in plain values."""
    values = OmegaConf.to_container(node, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def one_line(error: Exception) -> str:
    """What Hydra or OmegaConf found wrong, in one line that names the key and what is allowed."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        allowed = ", ".join(option for option in error.options or [] if option not in _BASES)
        return f"{group or 'config'}={choice} is unknown; allowed: {allowed}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    key = getattr(error, "full_key", None)
    prefix = f"{key}: " if key and key not in (lines or [""])[0] else ""
    return prefix + " ".join(line for line in lines if not line.startswith(_NOISE))


_BASES = ("in_memory",)
_NOISE = ("object_type=", "full_key:", "Set the environment variable", "Config search path")


@dataclass(frozen=True)
class Rule:
    """What a value may be: in words, and as a test."""

    words: str
    holds: Callable[[Any], bool]


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _integer_from(low: int, high: int = 2**31 - 1) -> Rule:
    return Rule(f"an integer from {low} to {high}", lambda v: _integer(v) and low <= v <= high)


def _choice(*names: str) -> Rule:
    return Rule(f"{', '.join(names[:-1])} or {names[-1]}", lambda v: v in names)


def _triple(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(_number(v) for v in value)


POSITIVE = Rule("a number > 0", lambda v: _number(v) and v > 0)
NOT_NEGATIVE = Rule("a number >= 0", lambda v: _number(v) and v >= 0)
SHARE = Rule("0 <= value < 1", lambda v: _number(v) and 0 <= v < 1)
FLAG = Rule("true or false", lambda v: isinstance(v, bool))
TEXT = Rule("a path", lambda v: isinstance(v, str) and v != "" and "\0" not in v)


def _each(rule: Rule, least: int = 1) -> Rule:
    """One value, or a list of `least` or more, that `rule` allows."""

    def holds(value: Any) -> bool:
        values = value if isinstance(value, list) else [value]
        return len(values) >= least and all(rule.holds(v) for v in values)

    return Rule(f"{rule.words}, or a list of such", holds)


def _path_to(*suffixes: str) -> Rule:
    words = f"a path that ends in {' or '.join(suffixes)}"
    return Rule(words, lambda v: TEXT.holds(v) and Path(v).suffix in suffixes)


LIMIT = Rule("a number > 0, or null", lambda v: v is None or (_number(v) and v > 0))

# Every value that can be judged without the data or the network at hand.
RULES: dict[str, Rule] = {
    "seed": _integer_from(0),
    "compile": FLAG,
    "method.reg_weight": NOT_NEGATIVE,
    "method.shift": Rule("a finite number", _number),
    "data.root": TEXT,
    "data.batch_size": _integer_from(2),
    "data.eval_batch_size": _integer_from(1),
    "data.val_fraction": SHARE,
    "data.padding": _integer_from(0, 1024),
    "data.flip": FLAG,
    "data.mean": Rule("three numbers", _triple),
    "data.std": Rule("three numbers > 0", lambda v: _triple(v) and min(v) > 0),
    "data.image_size": _integer_from(1, 8192),
    "data.workers": _integer_from(0, 1024),
    "data.seed": _integer_from(0),
    "data.split_seed": _integer_from(0),
    "optimizer.lr": POSITIVE,
    "optimizer.momentum": SHARE,
    "optimizer.nesterov": FLAG,
    "optimizer.weight_decay": NOT_NEGATIVE,
    "optimizer.sigbn_lr_factor": POSITIVE,
    "optimizer.decay": POSITIVE,
    "optimizer.curve": _choice("steps", "cosine", "onecycle"),
    "optimizer.milestones": Rule(
        "a list of shares in [0, 1]",
        lambda v: isinstance(v, list) and all(_number(s) and 0 <= s <= 1 for s in v),
    ),
    "trainer.max_epochs": _integer_from(1),
    "trainer.accumulate_grad_batches": _integer_from(1),
    "trainer.check_val_every_n_epoch": _integer_from(1),
    "trainer.limit_train_batches": LIMIT,
    "trainer.limit_val_batches": LIMIT,
    "trainer.limit_test_batches": LIMIT,
    "trainer.fast_dev_run": Rule(
        "false (it keeps no checkpoints; for a quick try give trainer.limit_train_batches=3)",
        lambda v: v is False,
    ),
    "checkpoint": TEXT,
    "resume": TEXT,
    "init": TEXT,
    "allow": Rule(
        "a list of dotted names",
        lambda v: isinstance(v, list) and all(isinstance(name, str) for name in v),
    ),
    "prune.ratio": Rule("0 <= ratio < 1, or auto", lambda v: v == "auto" or SHARE.holds(v)),
    "prune.target": _choice("channels", "params", "macs"),
    "prune.coupled": FLAG,
    "prune.round_to": _integer_from(1, 4096),
    "prune.absorb": FLAG,
    "prune.recalibrate": _integer_from(0),
    "prune.latency": FLAG,
    "prune.scope": _choice("global", "local"),
    "prune.min_channels": _integer_from(1),
    "distill.weight": Rule("0 <= value <= 1", lambda v: _number(v) and 0 <= v <= 1),
    "distill.temperature": POSITIVE,
}
ENGINES = ("eager", "compiled", "onnx")

# What one command allows in place of the above, or beside it.
RULES_OF: dict[str, dict[str, Rule]] = {
    "export": {"output": _path_to(".onnx", ".pt2"), "align": _integer_from(1, 4096)},
    "benchmark": {
        "checkpoint": _each(TEXT),
        "engines": _each(Rule("eager, compiled or onnx", lambda v: v in ENGINES)),
        "batch": _each(_integer_from(1)),
        "threads": _integer_from(1, 1024),
        "repeats": _integer_from(1),
        "align": _integer_from(1, 4096),
        "json": _path_to(".json"),
        "prune.ratio": _each(SHARE, least=0),
        "prune.round_to": _each(RULES["prune.round_to"]),
    },
}
MAY_BE_NULL = {
    "threads",
    "json",
    "init",
    "trainer.limit_train_batches",
    "trainer.limit_val_batches",
    "trainer.limit_test_batches",
    "resume",
    "prune.scope",
    "data.mean",
    "data.std",
    "data.image_size",
}


def check(config: DictConfig) -> None:
    """Raise `ConfigError` for the first value that is missing or out of range."""
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
    _check_together(config)
    arch = _select(config, "arch._target_")
    if arch is not _ABSENT and (not isinstance(arch, str) or "." not in arch):
        raise ConfigError(f"arch._target_={arch!r} is not allowed; allowed: a full dotted name")


def _check_together(config: DictConfig) -> None:
    """Values that are allowed each, but not together."""
    if "trainer" not in config:
        return
    if config.get("command") == "train" and ("prune" in config or "distill" in config):
        raise ConfigError("the experiment or switch is one of prune.py, not of train.py")
    if config.optimizer.nesterov and not config.optimizer.momentum:
        raise ConfigError("optimizer.momentum=0 is not allowed with optimizer.nesterov=true")
    every, epochs = config.trainer.check_val_every_n_epoch, config.trainer.max_epochs
    if every > epochs:
        raise ConfigError(
            f"trainer.check_val_every_n_epoch={every} is not allowed with "
            f"trainer.max_epochs={epochs}: no epoch would be validated"
        )


_ABSENT = object()


def _select(config: DictConfig, key: str) -> Any:
    try:
        value = OmegaConf.select(config, key, default=_ABSENT, throw_on_missing=True)
    except OmegaConfBaseException as error:
        if "Missing mandatory value" in str(error):
            raise ConfigError(f"{key} is missing: give it as {key}=VALUE") from error
        raise ConfigError(one_line(error)) from error
    if OmegaConf.is_config(value):
        return OmegaConf.to_container(value, resolve=True)
    return value
