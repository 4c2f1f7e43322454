"""Reading run directories, or a CSV of them, into one table with a row for each run."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from rni_pl.errors import CheckpointError, ConfigError
from rni_pl.report.variants import Settings, flatten, label
from rni_pl.runs import checkpoint
from rni_pl.runs.files import CHECKPOINTS, CONFIG, FAILURE, LAST, SUMMARY

# Columns of the table, and of a CSV that can be read in place of directories. Accuracies are
# fractions on the test set. As JSON: `kept` and `widths`, channels by layer, and `shrunk`, the MACs
# of each epoch of a network that shrank while it was trained (this one may be missing).
TEXTS = ("run", "dataset", "arch", "method", "variant", "ratio", "kept", "widths", "shrunk")
NUMBERS = (
    "seed", "acc_dense", "acc_pruned", "accuracy", "params_dense", "params", "macs_dense", "macs",
    "channels_dense", "channels", "latency_dense_ms", "latency_ms", "epochs", "best_epoch",
)  # fmt: skip
COLUMNS = (*TEXTS[:6], *NUMBERS, *TEXTS[6:])
DENSE = "dense"
SHARES = {"macs": "MACs", "params": "parameters"}  # what ratios are of, where not of channels

COMMON = ("dataset", "arch", "method")
FRACTIONS = {"test_acc", "acc_dense", "acc_pruned", "acc_finetuned"}
OF_TRAINING = (*COMMON, "test_acc", "params", "macs")
OF_PRUNING = (
    *COMMON, "ratio", "acc_dense", "acc_pruned", "acc_finetuned", "params_dense", "params_pruned",
    "macs_dense", "macs_pruned", "channels_dense", "channels_pruned", "kept",
)  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """A run that is not used, or something of it, and why."""

    run: str
    reason: str


@dataclass
class Runs:
    """All runs that were found.

    Attributes:
        table: a row for each run, with `COLUMNS`; row i is that of `paths[i]`.
        paths: the directory of each run, None where it comes from a CSV.
        problems: what cannot be used.
    """

    table: pd.DataFrame
    paths: list[Path | None]
    problems: list[Problem]


class Unusable(ValueError):
    """Why a run directory cannot be used."""


@dataclass(frozen=True)
class _Run:
    name: str
    path: Path
    summary: dict[str, Any]
    settings: Settings | None

    @property
    def is_pruned(self) -> bool:
        return "ratio" in self.summary


def read(places: Iterable[Path]) -> Runs:
    """All runs in and below directories, each once; or those in a file of runs.

    Raises:
        ConfigError: a place does not exist, or a file is no CSV of runs.
    """
    places, found, problems = list(places), list[_Run](), list[Problem]()
    if any(place.is_file() for place in places):
        if len(places) > 1:  # what a label leaves out need not be the same elsewhere
            raise ConfigError(f"{places[0]}: a file of runs is read by itself")
        table = _from_csv(places[0])
        return _without_repeats(Runs(table, [None] * len(table), problems))
    for place in places:
        if not place.is_dir():
            raise ConfigError(f"{place} is neither a directory nor a file of runs")
        _collect(place, found, problems)
    return _without_repeats(Runs(_table(found), [run.path for run in found], problems))


def _from_csv(file: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(file, dtype=dict.fromkeys(TEXTS, str), encoding="utf-8")
        table = table if "shrunk" in table else table.assign(shrunk="")
        missing = [name for name in COLUMNS if name not in table]
        if missing:
            raise ConfigError(f"{file} is no file of runs: it has no column {missing[0]}")
        table[list(NUMBERS)] = table[list(NUMBERS)].apply(pd.to_numeric)
    except (ValueError, OSError) as error:
        raise ConfigError(f"{file} is no file of runs: {_line(error)}") from error
    return table[list(COLUMNS)].fillna(dict.fromkeys(TEXTS, ""))


def _without_repeats(runs: Runs) -> Runs:
    """Of runs with the same settings and seed, only the first counts."""
    keys = ["dataset", "arch", "variant", "ratio", "seed"]
    again = runs.table.duplicated(keys) & runs.table["seed"].notna()
    for name in runs.table.loc[again, "run"]:
        runs.problems.append(Problem(name, "left out: another run has its settings and its seed"))
    kept = runs.table.index[~again]
    return Runs(
        runs.table.loc[kept].reset_index(drop=True), [runs.paths[i] for i in kept], runs.problems
    )


def _collect(top: Path, found: list[_Run], problems: list[Problem]) -> None:
    seen = {run.path.resolve() for run in found}
    for path in _directories(top, problems):
        if path.resolve() in seen:
            continue
        seen.add(path.resolve())
        name = printable(str(path.relative_to(top)) if path != top else path.name or str(path))
        if any(run.name == name for run in found):  # called the same below another directory
            name = printable(str(path))
        try:
            found.append(_read_run(path, name))
        except Unusable as problem:
            problems.append(Problem(name, printable(str(problem))))


def _directories(top: Path, problems: list[Problem]) -> Iterator[Path]:
    """Directories that a run has written to, in a fixed order; hidden ones are left out."""

    def unreadable(error: OSError) -> None:
        problems.append(
            Problem(printable(str(error.filename)), f"cannot be read: {error.strerror}")
        )

    for folder, below, files in os.walk(top, onerror=unreadable):
        path = Path(folder)
        below[:] = sorted(name for name in below if not name.startswith("."))
        has_checkpoints = CHECKPOINTS in below and any((path / CHECKPOINTS).glob("*.ckpt"))
        if has_checkpoints or SUMMARY in files or _is_config_of_ours(path, files):
            yield path
        if has_checkpoints:
            below.remove(CHECKPOINTS)


def _is_config_of_ours(path: Path, files: list[str]) -> bool:
    if CONFIG not in files:
        return False
    try:
        return "command" in (_read_config(path) or {})
    except Unusable:
        return True  # it cannot be told, so better name it


def _read_run(path: Path, name: str) -> _Run:
    settings, summary = _read_config(path), _read_summary(path / SUMMARY)
    if summary is None:
        raise Unusable(_why_unfinished(path, settings or {}))
    for key in OF_PRUNING if "ratio" in summary else OF_TRAINING:
        if key not in summary:
            raise Unusable(f"summary.json: {key} is missing")
        if not _is_sound(key, summary[key]):
            raise Unusable(f"summary.json: {key}={summary[key]!s:.80} is not allowed")
    return _Run(name, path, summary, settings)


def _is_sound(key: str, value: Any) -> bool:
    if key in COMMON:
        return isinstance(value, str) and value != "" and value.isprintable()
    if key == "kept":
        return isinstance(value, dict) and all(isinstance(n, int) and n > 0 for n in value.values())
    if key == "ratio" and value in ("auto", "plan"):
        return True
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return 0 <= value <= 1 if key in FRACTIONS or key == "ratio" else 0 < value < 2**63


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


def _read_config(path: Path) -> Settings | None:
    try:
        config = yaml.safe_load((path / CONFIG).read_text(encoding="utf-8"))
        if isinstance(config, dict):
            return {printable(key): value for key, value in flatten(config).items()}
    except FileNotFoundError:
        return None
    except Exception as error:  # damaged bytes make yaml raise whatever they meet first
        raise Unusable(f"config.yaml is damaged: {_line(error)}") from error
    raise Unusable("config.yaml is damaged: it holds no settings by name")


def _why_unfinished(path: Path, settings: Mapping[str, Any]) -> str:
    """What is known of a run without `summary.json`."""
    try:
        failure = json.loads((path / FAILURE).read_text(encoding="utf-8"))
        return f"failed: {failure['error']}"
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"failed, and its failure.json is damaged: {_line(error)}"
    planned, done = settings.get("trainer.max_epochs", "an unknown number"), "0"
    if (path / LAST).is_file():
        try:
            done = str(checkpoint.read_plain(path / LAST)["epoch"] + 1)
        except (CheckpointError, KeyError, TypeError):
            done = "an unknown number (last.ckpt is damaged)"
    return f"unfinished (no summary.json): {done} of {planned} epochs are done"


def _table(found: list[_Run]) -> pd.DataFrame:
    """One row a run, called by what it differs in from others of its method."""
    rows = pd.DataFrame([_row(run) for run in found], columns=list(COLUMNS))
    rows[list(NUMBERS)] = rows[list(NUMBERS)].apply(pd.to_numeric)
    for _, same in rows.groupby(["dataset", "arch", "method"], sort=False):
        runs = [found[i] for i in same.index]
        parents = [_parent_of(run, found) for run in runs]
        training = [
            None if run.is_pruned and parent is None else (parent or run).settings
            for run, parent in zip(runs, parents, strict=True)
        ]
        origin = [
            str((run.settings or {}).get("checkpoint")) if run.is_pruned and parent is None else ""
            for run, parent in zip(runs, parents, strict=True)
        ]
        tuning = [run.settings if run.is_pruned else None for run in runs]
        method = str(same["method"].iloc[0])
        rows.loc[same.index, "variant"] = label(method, training, tuning, origin)
    return rows


def _row(run: _Run) -> dict[str, Any]:
    s = run.summary
    row: dict[str, Any] = {key: s[key] for key in COMMON}
    row |= {"run": run.name, "variant": "", "seed": s.get("seed")}
    row |= {key: s.get(key) for key in ("epochs", "best_epoch")}
    row["shrunk"] = json.dumps(s["macs_by_epoch"]) if "macs_by_epoch" in s else ""
    if not run.is_pruned:
        row |= {"ratio": DENSE, "acc_dense": s["test_acc"], "accuracy": s["test_acc"]}
        row |= {key: s[key.removesuffix("_dense")] for key in ("params_dense", "macs_dense")}
        return {**row, "params": s["params"], "macs": s["macs"], "kept": "", "widths": ""}
    share, of = s["ratio"], SHARES.get(s.get("target", ""))
    row["ratio"] = share if isinstance(share, str) else f"{share:g} of {of}" if of else f"{share:g}"
    row |= {key: s[key] for key in ("acc_dense", "acc_pruned", "params_dense", "macs_dense")}
    row |= {"accuracy": s["acc_finetuned"], "channels_dense": s["channels_dense"]}
    row |= {key: s[f"{key}_pruned"] for key in ("params", "macs", "channels")}
    timed = s.get("latency") or {}
    row |= {"latency_dense_ms": timed.get("dense_ms"), "latency_ms": timed.get("pruned_ms")}
    return {**row, "kept": json.dumps(s["kept"]), "widths": json.dumps(s.get("widths") or {})}


def _parent_of(run: _Run, found: list[_Run]) -> _Run | None:
    """The training run that a pruned one started from: by its path, or its name and figures."""
    given = (run.settings or {}).get("checkpoint")
    if not run.is_pruned or not isinstance(given, str):
        return None
    path = Path(given)
    path = path.parent.parent if path.suffix == ".ckpt" else path
    trained = [other for other in found if not other.is_pruned and _is_dense_of(run, other)]
    exact = [other for other in trained if other.path.resolve() == path.resolve()]
    named = exact or [other for other in trained if other.path.resolve().name == path.name]
    return named[0] if len(named) == 1 else None


def _is_dense_of(run: _Run, other: _Run) -> bool:
    keys = (("params_dense", "params"), ("macs_dense", "macs"), ("method", "method"))
    near = abs(run.summary["acc_dense"] - other.summary["test_acc"]) <= 0.0025  # another machine
    return near and all(run.summary[own] == other.summary[key] for own, key in keys)


def printable(text: str) -> str:
    """A text with a mark in place of what no page can show: control characters, stray bytes."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
