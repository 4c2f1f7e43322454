"""Which runs are alike but for their seed, and what the others differ in."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from rni_pl.report.collect import Run

# What has no bearing on the figures, or is a column of its own.
LEFT_OUT = {
    "seed", "data.seed", "data.split_seed", "checkpoint", "resume", "existing", "allow",
    "command",
    "prune.ratio", "prune.target", "prune.latency", "data.choice", "data.name", "data.workers",
    "data.eval_batch_size",
}  # fmt: skip
LEFT_OUT_PARTS = ("overrides", "data.source", "data._target_")
# Of the trainer's arguments, those that do have a bearing.
OF_TRAINER = {
    "max_epochs", "min_epochs", "max_steps", "max_time", "limit_train_batches", "limit_val_batches",
    "limit_test_batches", "overfit_batches", "accumulate_grad_batches", "gradient_clip_val",
    "gradient_clip_algorithm", "sync_batchnorm", "precision", "check_val_every_n_epoch",
    "callbacks",
}  # fmt: skip
# Groups that take arguments which their files do not name, as in `+arch.width_mult=0.25`.
OPEN = ("arch.", "trainer.")

# How far the accuracy of one network may be apart where another machine measures it.
NOISE = 0.0025


@dataclass(frozen=True)
class Variant:
    """Runs of one method with the same settings.

    Attributes:
        method: name of the method.
        label: the method, and each setting in which runs of it differ.
    """

    method: str
    label: str


@dataclass(frozen=True)
class _Settings:
    """Flat settings of the training and of the pruning that led to a run.

    A key that is missing is not known and tells no runs apart; the value None does, silently. Of an
    open group a missing key is None, since there it was not given.
    """

    training: dict[str, Any]
    pruning: dict[str, Any]


def variants(runs: Sequence[Run], without: Collection[str] = ()) -> list[Variant]:
    """The variant of each run; all of them of one data set and network.

    Settings of the keys `without` tell no runs apart.
    """
    parents = [parent_of(run, runs) for run in runs]
    orphans = [r for r, parent in zip(runs, parents, strict=True) if parent is None]
    names = _short_names({path for run in orphans if (path := _checkpoint(run))})
    settings = [_settings(run, parent, names) for run, parent in zip(runs, parents, strict=True)]
    labels = {}
    for method in {run.summary["method"] for run in runs}:
        mine = [s for s, run in zip(settings, runs, strict=True) if run.summary["method"] == method]
        labels[method] = tuple(
            [key for key in _varying(of) if key not in without]
            for of in ([s.training for s in mine], [s.pruning for s in mine])
        )
    return [
        _variant(run.summary["method"], own, *labels[run.summary["method"]])
        for run, own in zip(runs, settings, strict=True)
    ]


def parent_of(run: Run, runs: Iterable[Run]) -> Run | None:
    """The training run that a pruned one started from, if it is among `runs`.

    The path in its configuration decides, unless the figures of the dense network show that the
    run there is another one by now. Where runs were moved since, the directory's name and these
    figures must agree with one run alone.
    """
    given = _checkpoint(run)
    if not run.is_pruned or given is None:
        return None
    path = Path(given).resolve()
    path = path.parent.parent if path.suffix == ".ckpt" else path
    trained = [other for other in runs if not other.is_pruned]
    for other in trained:
        if other.path.resolve() == path:
            known = _is_dense_network_of(run, other, NOISE) or _of_another_epoch(given)
            return other if known else None
    named = [other for other in trained if other.path.resolve().name == path.name]
    alike = [other for other in named if _is_dense_network_of(run, other)]
    return alike[0] if len(alike) == 1 else None


def _is_dense_network_of(run: Run, other: Run, noise: float = 0.0) -> bool:
    """Whether a pruned run started from a network with the figures of a training run."""
    before = (run.summary[key] for key in ("params_dense", "macs_dense", "method"))
    figures = (other.summary[key] for key in ("params", "macs", "method"))
    near = abs(run.summary["acc_dense"] - other.summary["test_acc"]) <= noise
    return near and list(before) == list(figures)


def _of_another_epoch(given: str) -> bool:
    """Whether a checkpoint is not that of the best epoch, of which the figures are."""
    return given.endswith(".ckpt") and Path(given).name != "best.ckpt"


def _checkpoint(run: Run) -> str | None:
    """The checkpoint that a run was given, a file or a directory."""
    given = (run.settings or {}).get("checkpoint")
    return given if isinstance(given, str) else None


def _short_names(paths: Iterable[str]) -> dict[str, str]:
    """Each path without the folders that all of them share."""
    parts = {path: Path(path).parts for path in paths}
    levels = zip(*parts.values(), strict=False)
    shared = len(list(takewhile(lambda level: len(set(level)) == 1, levels)))
    return {path: "/".join(of[shared:]) or path for path, of in parts.items()}


def _settings(run: Run, parent: Run | None, names: Mapping[str, str]) -> _Settings:
    if not run.is_pruned:
        return _Settings(_relevant(run), {})
    pruning = _relevant(run)
    pruning["prune.scope"] = run.summary["scope"]
    if parent is not None:
        given = _checkpoint(run) or ""
        other = Path(given).name if _of_another_epoch(given) else None
        return _Settings({**_relevant(parent), "checkpoint": other}, pruning)
    return _Settings({"checkpoint": names.get(_checkpoint(run) or "")}, pruning)


def _relevant(run: Run) -> dict[str, Any]:
    if run.settings is None:
        return {"config.yaml": "missing", "epochs": run.summary.get("epochs")}
    return {"config.yaml": None, **{k: v for k, v in run.settings.items() if matters(k)}}


def matters(key: str) -> bool:
    """Whether a setting, by its dotted key, has a bearing on a run's figures."""
    group, _, name = key.partition(".")
    if group == "trainer":
        return name in OF_TRAINER
    return key not in LEFT_OUT and not key.startswith(LEFT_OUT_PARTS)


def _varying(settings: Iterable[Mapping[str, Any]]) -> list[str]:
    """Keys that have more than one value."""
    settings = list(settings)
    keys = dict.fromkeys(key for one in settings for key in one)
    return [
        key
        for key in keys
        if len({one.get(key) for one in settings if key in one or _is_not_given(key, one)}) > 1
    ]


def _is_not_given(key: str, settings: Mapping[str, Any]) -> bool:
    """Whether a key that is missing from settings was left out of a known configuration."""
    return key.startswith(OPEN) and settings.get("config.yaml", "missing") is None


def _variant(method: str, own: _Settings, training: list[str], pruning: list[str]) -> Variant:
    pieces = [method]
    pieces += [
        f"{_short(key, training)}={_value(own.training[key])}"
        for key in training
        if own.training.get(key) is not None
    ]
    pieces += [
        f"{'' if key.startswith('prune.') else 'fine-tuning '}{_short(key, pruning)}="
        f"{_value(own.pruning[key])}"
        for key in pruning
        if own.pruning.get(key) is not None
    ]
    return Variant(method, ", ".join(pieces))


def _short(key: str, others: Iterable[str]) -> str:
    """The last part of a key, where that says enough."""
    last = key.rpartition(".")[2]
    alone = sum(other.rpartition(".")[2] == last for other in others) == 1
    return last if alone and not last.startswith("_") and key != "config.yaml" else key


def _value(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
