"""What a configuration value may be, where that can be said without the data or the network."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Rule:
    """What a value may be: in words, and as a test."""

    words: str
    holds: Callable[[Any], bool]


def _number(value: Any) -> bool:
    """Whether torch can take it: finite, as a float32 and as a 64-bit integer."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 2**63 if isinstance(value, int) else abs(value) < 3e38


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


LIMIT = Rule(
    "a number of batches, or a share in (0, 1]",
    lambda v: _number(v) and (v >= 1 if _integer(v) else 0 < v <= 1),
)
TARGET = Rule(
    "the full dotted name of a class or function",
    lambda v: isinstance(v, str) and re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", v) is not None,
)


def _devices(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(_integer(item) and 0 <= item < 4096 for item in value)
    if isinstance(value, str):
        return value == "auto" or re.fullmatch(r"-1|\d{1,4}", value) is not None
    return _integer(value) and (value == -1 or 1 <= value <= 4096)


def _duration(value: Any) -> bool:
    """As Lightning's `max_time` takes it: DD:HH:MM:SS."""
    return isinstance(value, str) and re.fullmatch(r"\d+:\d\d:\d\d:\d\d", value) is not None


def _starts_nothing(strategy: Any) -> bool:
    """Whether Lightning would start no processes itself: what those find stays with them."""
    return re.search("spawn|fork|notebook", str(strategy)) is None


def _are_made(value: Any) -> bool:
    """Whether each of several is a class by name with its arguments."""
    if not isinstance(value, dict):
        return False
    return all(isinstance(v, dict) and TARGET.holds(v.get("_target_")) for v in value.values())


PATHS = ("checkpoint", "resume", "init", "data.root")

RULES: dict[str, Rule] = {
    **dict.fromkeys(
        (
            "arch",
            "method",
            "data",
            "optimizer",
            "scheduler",
            "trainer",
            "prune",
            "distill",
            "loss",
            "shrink",
        ),
        Rule("a mapping of settings", lambda v: isinstance(v, dict)),
    ),
    "arch._target_": TARGET,
    "method._target_": TARGET,
    "data._target_": TARGET,
    "trainer._target_": TARGET,
    "optimizer._target_": TARGET,
    "scheduler._target_": TARGET,
    **dict.fromkeys(
        ("optimizer._partial_", "scheduler._partial_"), Rule("true", lambda v: v is True)
    ),
    "data.name": Rule("a name", lambda v: isinstance(v, str) and v != "" and v.isprintable()),
    **dict.fromkeys(
        ("logger.tensorboard.name", "logger.csv.name"), Rule("a text", lambda v: isinstance(v, str))
    ),
    **dict.fromkeys(
        ("logger.tensorboard.version", "logger.csv.version"),
        Rule("a text or a whole number", lambda v: isinstance(v, str) or _integer(v)),
    ),
    "data.source": Rule(
        "a function by name, {_target_: NAME, _partial_: true}",
        lambda v: (
            isinstance(v, dict) and TARGET.holds(v.get("_target_")) and v.get("_partial_") is True
        ),
    ),
    "seed": _integer_from(0),
    "compile": FLAG,
    "shorten": POSITIVE,
    "logger": Rule("loggers by name, each with a _target_", _are_made),
    "callbacks": Rule("callbacks by name, each with a _target_", _are_made),
    "overwrite": FLAG,
    "method.reg_weight": NOT_NEGATIVE,
    "method.shift": Rule("a finite number", _number),
    "data.batch_size": _integer_from(2),
    "data.eval_batch_size": _integer_from(1),
    "data.val_fraction": SHARE,
    "data.overfit": _integer_from(0),
    "data.padding": _integer_from(0, 1024),
    "data.flip": FLAG,
    "data.check_files": FLAG,
    "data.mean": Rule("three numbers", _triple),
    "data.std": Rule("three numbers > 0", lambda v: _triple(v) and min(v) > 0),
    "data.image_size": _integer_from(1, 8192),
    "data.workers": _integer_from(0, 1024),
    "data.seed": _integer_from(0),
    "data.split_seed": _integer_from(0),
    "optimizer.lr": POSITIVE,
    "optimizer.momentum": SHARE,
    "optimizer.weight_decay": NOT_NEGATIVE,
    "optimizer.sigbn_lr_factor": POSITIVE,
    "trainer.strategy": Rule(
        "auto, ddp or another strategy of Lightning's, but none of spawn, fork or notebook "
        "(with trainer.strategy=ddp trainer.devices=2 the processes are started here)",
        _starts_nothing,
    ),
    "trainer.devices": Rule("a number of devices, a list of them, or auto", _devices),
    "trainer.num_nodes": _integer_from(1, 4096),
    "trainer.max_epochs": _integer_from(0),
    "trainer.min_epochs": _integer_from(0),
    "trainer.max_steps": Rule("-1 or a number > 0", lambda v: _integer(v) and (v == -1 or v > 0)),
    "trainer.max_time": Rule("DD:HH:MM:SS", _duration),
    "trainer.accumulate_grad_batches": _integer_from(1),
    "trainer.gradient_clip_val": NOT_NEGATIVE,
    "trainer.gradient_clip_algorithm": _choice("norm", "value"),
    "trainer.check_val_every_n_epoch": _integer_from(1),
    "trainer.num_sanity_val_steps": _integer_from(-1),
    "trainer.log_every_n_steps": _integer_from(0),
    "trainer.limit_train_batches": LIMIT,
    "trainer.limit_val_batches": LIMIT,
    "trainer.limit_test_batches": LIMIT,
    "trainer.overfit_batches": Rule(
        "0 (every epoch has an order of its own; for few batches give trainer.limit_train_batches)",
        lambda v: v == 0,
    ),
    "trainer.deterministic": Rule("true, false or warn", lambda v: v in (True, False, "warn")),
    **{
        f"trainer.{name}": FLAG
        for name in (
            "sync_batchnorm",
            "use_distributed_sampler",
            "benchmark",
            "inference_mode",
            "enable_progress_bar",
            "enable_model_summary",
            "detect_anomaly",
        )
    },
    "trainer.profiler": Rule(
        "simple, advanced, pytorch, xla, or a class by name, {_target_: NAME}",
        lambda v: (
            v in ("simple", "advanced", "pytorch", "xla")
            if isinstance(v, str)
            else isinstance(v, dict) and TARGET.holds(v.get("_target_"))
        ),
    ),
    "trainer.fast_dev_run": Rule(
        "false (it keeps no checkpoints; for a quick try give trainer.limit_train_batches=3)",
        lambda v: v is False,
    ),
    **dict.fromkeys(PATHS, TEXT),
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
    "prune.scope": _choice("global", "local"),
    "prune.min_channels": _integer_from(1),
    "prune.measure_latency": FLAG,
    "prune.max_ratio": SHARE,
    "prune.ratios": Rule(
        "shares in [0, 1) by names or patterns of layers",
        lambda v: isinstance(v, dict) and all(SHARE.holds(share) for share in v.values()),
    ),
    "prune.ignore": Rule(
        "a list of names or patterns of layers",
        lambda v: isinstance(v, list) and all(isinstance(name, str) for name in v),
    ),
    "prune.importance": Rule(
        "a class or function by name, {_target_: NAME}",
        lambda v: isinstance(v, dict) and TARGET.holds(v.get("_target_")),
    ),
    "prune.plan_only": FLAG,
    "prune.steps": _integer_from(1, 1000),
    "prune.epochs_per_step": _integer_from(1),
    "prune.schedule": _choice("linear", "geometric"),
    "prune.plan": TEXT,
    "distill.weight": Rule("0 <= value <= 1", lambda v: _number(v) and 0 <= v <= 1),
    "distill.temperature": POSITIVE,
    "shrink.every": _integer_from(0),
    "shrink.below": Rule("0 < value < 0.5", lambda v: _number(v) and 0 < v < 0.5),
    "shrink.patience": _integer_from(1),
    "shrink.coupled": FLAG,
    "loss.label_smoothing": SHARE,
    "loss.class_weights": Rule(
        "balanced, or a list of numbers > 0, one for each class",
        lambda v: v == "balanced" or (isinstance(v, list) and all(POSITIVE.holds(w) for w in v)),
    ),
}
ENGINES = ("eager", "compiled", "onnx")

RULES_OF: dict[str, dict[str, Rule]] = {
    "export": {"output": _path_to(".onnx", ".pt2"), "align": _integer_from(1, 4096)},
    "sensitivity": {
        "ratios": Rule(
            "a list of shares above 0 and below 1",
            lambda v: isinstance(v, list) and bool(v) and all(SHARE.holds(r) and r > 0 for r in v),
        ),
        "share": Rule("0 < value <= 1", lambda v: _number(v) and 0 < v <= 1),
        "max_drop": SHARE,
        "coupled": FLAG,
    },
    "benchmark": {
        "checkpoint": _each(TEXT),
        "engines": _each(_choice(*ENGINES)),
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
    "logger", "callbacks", "threads", "json", "init", "resume", "prune.scope",
    "prune.max_ratio", "prune.ratios", "prune.plan", "loss.class_weights", "data.mean",
    "data.std", "data.image_size",
}  # fmt: skip
MAY_BE_NULL |= {
    f"trainer.{name}"
    for name in (
        "min_epochs", "max_time", "gradient_clip_val", "gradient_clip_algorithm",
        "num_sanity_val_steps", "log_every_n_steps", "limit_train_batches", "limit_val_batches",
        "limit_test_batches", "deterministic", "benchmark", "inference_mode",
        "enable_progress_bar", "enable_model_summary", "profiler",
    )
}  # fmt: skip
