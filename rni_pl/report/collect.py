"""Finding runs below directories, and saying what is wrong with those that cannot be used."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from rni_pl.errors import CheckpointError, ConfigError
from rni_pl.rules import Rule
from rni_pl.runs import checkpoint
from rni_pl.runs.files import CHECKPOINTS, CONFIG, FAILURE, LAST, SUMMARY

SHARES = {"macs": "MACs", "params": "parameters"}  # what ratios are of, where not of channels


@dataclass(frozen=True)
class Run:
    """A run that is done.

    Attributes:
        name: its directory, relative to the one that was searched.
        path: its directory.
        summary: what its `summary.json` holds.
        settings: what its `config.yaml` holds, flat, with dotted keys; None where there is none.
    """

    name: str
    path: Path
    summary: dict[str, Any]
    settings: dict[str, Any] | None

    @property
    def is_pruned(self) -> bool:
        """Whether this is a run of `prune.py`, not of `train.py`."""
        return "ratio" in self.summary

    @property
    def ratio(self) -> float | str | None:
        """The share of the channels that was to be removed, or ``"auto"``; None: a dense network.

        A share of something else is named as such: ``"0.95 of MACs"``.
        """
        share, of = self.summary.get("ratio"), SHARES.get(self.summary.get("target", ""))
        return f"{share:g} of {of}" if of and isinstance(share, int | float) else share

    @property
    def latency(self) -> dict[str, Any]:
        """What it measured of latency, flat, with keys ``latency.*``; empty if nothing."""
        return flatten(self.summary.get("latency", {}), "latency.")


@dataclass(frozen=True)
class Problem:
    """A run that is not used, or something of it, and why."""

    name: str
    reason: str


@dataclass
class Found:
    """The runs below some directories."""

    runs: list[Run] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


class Unusable(ValueError):
    """Why a run directory cannot be used."""


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_count(value: Any) -> bool:
    return _is_whole(value) and value > 0


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value != "" and value.isprintable()


def _are_counts(value: Any) -> bool:
    if not isinstance(value, dict) or not value:
        return False
    return all(map(_is_name, value)) and all(map(_is_count, value.values()))


TEXT = Rule("a printable text", _is_name)
FRACTION = Rule("a number in [0, 1]", _is_share)
WHOLE = Rule("a whole number", _is_whole)
COUNT = Rule("a whole number > 0", _is_count)
RATIO = Rule("a number in [0, 1], or auto", lambda v: v == "auto" or _is_share(v))
MAPPING = Rule("a mapping", lambda v: isinstance(v, dict))
COUNTS = Rule("a number of channels for each layer", _are_counts)

# What a summary must hold for its figures to be used.
COMMON = {"dataset": TEXT, "arch": TEXT, "method": TEXT}
OF_TRAINING = {**COMMON, "test_acc": FRACTION, "params": COUNT, "macs": COUNT}
OF_PRUNING = {
    **COMMON,
    "ratio": RATIO,
    "scope": TEXT,
    **dict.fromkeys(("acc_dense", "acc_pruned", "acc_finetuned"), FRACTION),
    **dict.fromkeys(("params_dense", "macs_dense", "channels_dense"), COUNT),
    **dict.fromkeys(("params_pruned", "macs_pruned", "channels_pruned"), COUNT),
    "kept": COUNTS,
}
OPTIONAL = {
    **dict.fromkeys(("seed", "epochs"), WHOLE),
    "best_epoch": Rule("a whole number, or null", lambda v: v is None or _is_whole(v)),
    **dict.fromkeys(("target", "precision"), TEXT),
    "widths": COUNTS,
    "latency": MAPPING,
}


def collect(directories: Iterable[Path]) -> Found:
    """All runs in and below `directories`, each once; those that cannot be used as problems.

    Raises:
        ConfigError: a directory does not exist.
    """
    found = Found()
    seen: set[Path] = set()
    for top in directories:
        if not top.is_dir():
            raise ConfigError(f"{top} is not a directory")
        for path in _run_directories(top, found.problems):
            if path.resolve() in seen:
                continue
            seen.add(path.resolve())
            name = printable(str(path.relative_to(top)) if path != top else str(top))
            try:
                found.runs.append(read_run(path, name))
            except Unusable as problem:
                found.problems.append(Problem(name, printable(str(problem))))
    _tell_apart(found)
    return found


def _tell_apart(found: Found) -> None:
    """Runs that are called the same below several directories are called by their full paths."""
    counts = Counter(run.name for run in found.runs)
    found.runs = [
        replace(run, name=printable(str(run.path))) if counts[run.name] > 1 else run
        for run in found.runs
    ]


def _run_directories(top: Path, problems: list[Problem]) -> Iterator[Path]:
    """Directories that a run has written to, in a fixed order; hidden ones are left out.

    Links are followed, but after all that is there itself, so that a run goes by its own name.
    """

    def unreadable(error: OSError) -> None:
        problems.append(
            Problem(printable(str(error.filename)), f"cannot be read: {error.strerror}")
        )

    starts, walked = [top], set()
    for start in starts:  # which grows
        for folder, below, files in os.walk(start, onerror=unreadable):
            path = Path(folder)
            if path.resolve() in walked:
                below.clear()
                continue
            walked.add(path.resolve())
            below[:] = sorted(name for name in below if not name.startswith("."))
            has_checkpoints = CHECKPOINTS in below and any((path / CHECKPOINTS).glob("*.ckpt"))
            if has_checkpoints or SUMMARY in files or _is_config_of_ours(path, files):
                yield path
            if has_checkpoints:
                below.remove(CHECKPOINTS)
            starts += [path / name for name in below if (path / name).is_symlink()]


def _is_config_of_ours(path: Path, files: list[str]) -> bool:
    if CONFIG not in files:
        return False
    try:
        return "command" in (_read_config(path) or {})
    except Unusable:
        return True  # it cannot be told, so better name it


def read_run(path: Path, name: str) -> Run:
    """The run in one directory.

    Raises:
        Unusable: it is not done, or a file of it is damaged.
    """
    settings = _read_config(path)
    summary = _read_summary(path / SUMMARY)
    if summary is None:
        raise Unusable(_why_unfinished(path, settings or {}))
    needed = OF_PRUNING if "ratio" in summary else OF_TRAINING
    for key, rule in {**needed, **OPTIONAL}.items():
        if key not in summary and key in needed:
            raise Unusable(f"summary.json: {key} is missing")
        if key in summary and not rule.holds(summary[key]):
            raise Unusable(f"summary.json: {key}={summary[key]!s:.80} is not {rule.words}")
    return Run(name, path, summary, settings)


def _read_summary(file: Path) -> dict[str, Any] | None:
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise Unusable(f"summary.json is damaged: {_line(error)}") from error
    if not isinstance(summary, dict):
        raise Unusable("summary.json is damaged: it holds no figures by name")
    return summary


def _read_config(path: Path) -> dict[str, Any] | None:
    try:
        config = yaml.safe_load((path / CONFIG).read_text(encoding="utf-8"))
        if isinstance(config, dict):
            return flatten(config)
    except FileNotFoundError:
        return None
    except Exception as error:  # damaged bytes make yaml raise whatever they meet first
        raise Unusable(f"config.yaml is damaged: {_line(error)}") from error
    raise Unusable("config.yaml is damaged: it holds no settings by name")


def printable(text: str) -> str:
    """A text with a mark in place of what no page can show: control characters, stray bytes."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def flatten(values: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys; what is no plain value becomes text."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = printable(f"{prefix}{key}")
        if isinstance(value, dict):
            flat.update(flatten(value, f"{name}."))
        else:
            plain = value is None or isinstance(value, int | float)
            flat[name] = value if plain else printable(str(value))
    return flat


def _why_unfinished(path: Path, settings: Mapping[str, Any]) -> str:
    """What is known of a run without `summary.json`."""
    try:
        failure = json.loads((path / FAILURE).read_text(encoding="utf-8"))
        return f"failed: {failure['error']}"
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"failed, and its failure.json is damaged: {_line(error)}"
    planned = settings.get("trainer.max_epochs", "an unknown number")
    return f"unfinished (no summary.json): {_epochs_done(path)} of {planned} epochs are done"


def _epochs_done(path: Path) -> str:
    last = path / LAST
    if not last.is_file():
        return "0"
    try:
        return str(checkpoint.read_plain(last)["epoch"] + 1)
    except (CheckpointError, KeyError, TypeError):
        return "an unknown number (last.ckpt is damaged)"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
