"""Which runs are alike but for their seed: a label for each, of what the others differ in."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

Settings = dict[str, Any]  # flat, with dotted keys

# What has no bearing on the figures, or is a column of its own.
LEFT_OUT = (
    "seed", "data.seed", "data.split_seed", "checkpoint", "resume", "overwrite", "allow", "command",
    "prune.ratio", "prune.target", "prune.measure_latency", "data.choice",
    "data.name", "data.workers", "data.eval_batch_size", "data.root", "existing", "init", "logger",
)  # fmt: skip
LEFT_OUT_GROUPS = ("hydra.", "overrides", "data.source", "data._target_", "logger.")
# Of the trainer's arguments, those that do have a bearing.
OF_TRAINER = {
    "max_epochs", "min_epochs", "max_steps", "max_time", "limit_train_batches", "limit_val_batches",
    "limit_test_batches", "overfit_batches", "accumulate_grad_batches", "gradient_clip_val",
    "gradient_clip_algorithm", "sync_batchnorm", "precision", "check_val_every_n_epoch",
}  # fmt: skip


def label(
    method: str,
    training: Sequence[Settings | None],
    tuning: Sequence[Settings | None],
    origin: Sequence[str],
) -> list[str]:
    """The method of each run, and each setting that is not as in most runs of it.

    Args:
        method: that all of them have.
        training: the settings under which each was trained; None: not known.
        tuning: the settings under which each was pruned and fine-tuned; None: it was not.
        origin: the checkpoint of each, where its training is not known.
    """
    trained, tuned = _varying(training), _varying(tuning)
    found = []
    for own, fine, name in zip(training, tuning, origin, strict=True):
        parts = [method, *_shown(own, trained, ""), *_shown(fine, tuned, "fine-tuning ")]
        found.append(", ".join([*parts, f"checkpoint={name}"] if name else parts))
    return found


def matters(key: str) -> bool:
    """Whether a setting, by its dotted key, has a bearing on a run's figures."""
    group, _, name = key.partition(".")
    if group == "trainer":
        return name in OF_TRAINER
    return key not in LEFT_OUT and not key.startswith(LEFT_OUT_GROUPS)


def flatten(values: Mapping[Any, Any], prefix: str = "") -> Settings:
    """Nested mappings as one, with dotted keys; what is no plain value becomes text."""
    flat: Settings = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            plain = value is None or isinstance(value, int | float)
            flat[f"{prefix}{key}"] = value if plain else str(value)
    return flat


def _varying(settings: Sequence[Settings | None]) -> dict[str, str]:
    """Keys that have more than one value, and the one that most runs have."""
    known = [own for own in settings if own is not None]
    keys = dict.fromkeys(key for own in known for key in own if matters(key))
    counts = {key: Counter(_text(own.get(key)) for own in known) for key in keys}
    return {key: of.most_common(1)[0][0] for key, of in counts.items() if len(of) > 1}


def _shown(settings: Settings | None, usual: dict[str, str], lead: str) -> list[str]:
    """Settings that are not as in most runs."""
    shown = []
    for key, common in usual.items():
        value: Any = common if settings is None else settings.get(key)
        last = key.rpartition(".")[2]
        clear = sum(other.rpartition(".")[2] == last for other in usual) == 1 and last[0] != "_"
        if _text(value) != common:
            before = "" if key.startswith("prune.") else lead
            shown.append(f"{before}{last if clear else key}={_text(value)}")
    return shown


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, int | float) else str(value)
