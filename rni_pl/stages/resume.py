"""Going on with a run: its configuration is composed anew from the choices it was started with.

A run directory may come from anywhere, so nothing in it is trusted: of its `config.yaml` only the
command, the checkpoint that it pruned and the list of overrides count, and an override may pick
configurations of ours and plain values, but name no code except a trusted network.
"""

import os
import re
from collections.abc import Collection
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities import rank_zero_warn

from rni_pl import checkpoint
from rni_pl import config as configuration
from rni_pl.errors import CheckpointError, ConfigError, DamagedError, UnknownChoiceError
from rni_pl.files import BEST, CONFIG, LAST, ORIGIN, SUMMARY, write_whole
from rni_pl.spec import WEIGHT_ARGUMENTS, check_trusted

# Overrides that concern one command, not the run.
OF_ONE_COMMAND = re.compile(r"[+~]*(resume|existing|allow|launch|search|hydra)\b")
# Settings that made a run's network, beside its architecture and its pruning; the last three say
# what a step is, in which its schedule and its place in an epoch are counted.
SETTLED = (
    "method._target_", "init",
    "data.batch_size", "trainer.accumulate_grad_batches", "trainer.limit_train_batches",
)  # fmt: skip


def last_checkpoint(config: DictConfig) -> Path | None:
    """The `last.ckpt` that a run goes on from; None: it starts from its beginning."""
    if config.resume is None:
        return None
    last = Path(config.resume) / LAST
    return last if last.is_file() else None


def resumed_step(config: DictConfig) -> int | None:
    """The step that a run goes on from; None: it starts from its beginning."""
    last = last_checkpoint(config)
    return None if last is None else _step(last)


def resumed_config(command: str, config: DictConfig) -> DictConfig:
    """The configuration of the run at `config.resume`, with what was given anew.

    Sees to it that `last.ckpt` is the newest sound checkpoint of the run, see `restore_last`.

    Raises:
        ConfigError: there is no such run, it is of another command, an override is not trusted,
            or one given anew would change what is settled.
        CheckpointError: its network is not trusted, nor allowed by this command, or no checkpoint
            is sound.
    """
    run_dir = Path(config.resume)
    if not run_dir.is_dir():
        raise ConfigError(f"resume={run_dir} is no directory of a run")
    stored, overrides = read_run(command, config, run_dir)
    restore_last(run_dir)
    given = [item for item in config.overrides if not OF_ONE_COMMAND.match(item)]
    stored_alone = [item for item in overrides if item not in given]  # said twice, the last counts
    try:
        merged = configuration.compose_config(command, [*stored_alone, *given], check_it=False)
    except UnknownChoiceError as error:
        if error.override not in overrides:
            raise
        hint = "if the run was started with --config-dir, give that again"
        raise ConfigError(f"{error}; {hint}") from error
    if any(item.startswith("trainer.max_epochs=") for item in given):
        _check_epochs(run_dir, merged)
    if given:
        _check_given(configuration.compose_config(command, overrides, check_it=False), merged)
    OmegaConf.update(merged, "resume", str(config.resume))
    OmegaConf.update(merged, "allow", list(config.allow))
    if any(item.startswith("checkpoint=") for item in given):  # moved since
        has_same_weights(config.checkpoint, run_dir)
        OmegaConf.update(merged, "checkpoint", os.path.abspath(config.checkpoint))
    elif command == "prune" and isinstance(stored.get("checkpoint"), str):
        OmegaConf.update(merged, "checkpoint", stored["checkpoint"])
    configuration.check(merged)
    return merged


def _check_epochs(run_dir: Path, now: DictConfig) -> None:
    """Refuse to stop before the epoch that a run has come to."""
    last, wanted = run_dir / LAST, now.trainer.max_epochs
    if not last.is_file() or wanted is None or wanted < 0:
        return
    begun = checkpoint.read_plain(last, "resume").get("epoch", -1) + 1
    if wanted < begun:
        raise ConfigError(
            f"trainer.max_epochs={wanted} is not allowed: {run_dir} has come to epoch {begun}"
        )


def _check_given(before: DictConfig, now: DictConfig) -> None:
    """Refuse to change what is settled in a run: its network, its pruning, what a step is."""
    there, here = (configuration.flat(configuration.plain(each)) for each in (before, now))
    for key in there | here:
        settled = key in SETTLED or key.startswith(("arch.", "prune."))
        if settled and there.get(key) != here.get(key):
            raise ConfigError(
                f"resume= cannot change {key} from {there.get(key)!r} to {here.get(key)!r}: it is "
                "settled in a run that has begun; start a new run"
            )


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


def has_checkpoint(run_dir: Path) -> bool:
    """Whether there is one to go on from, sound or not."""
    return any((run_dir / name).is_file() for name in (LAST, BEST))


def has_same_weights(given: str, run_dir: Path) -> bool:
    """Whether a checkpoint is known to be the one that a run started from.

    Raises:
        ConfigError: it is known to be another.
    """
    try:
        then, now = (run_dir / ORIGIN).read_text().strip(), checkpoint.digest(given)
    except (OSError, UnicodeDecodeError, CheckpointError):  # not recorded, or the network is gone
        return False
    if then != now:
        raise ConfigError(
            f"{run_dir} holds a run of other weights than checkpoint={given} has now; start "
            "a new run, in another directory or with existing=replace"
        )
    return True


def restore_last(run: Path) -> None:
    """Make `last.ckpt` the newest sound checkpoint of a run, if there is one.

    `best.ckpt` is copied to it where it is damaged, or older because the run was killed between the
    two. Epochs that are lost with it are trained again, to the same weights.

    Raises:
        CheckpointError: a checkpoint holds more than plain data, all are damaged, or those of a
            finished run are gone.
    """
    last, best = run / LAST, run / BEST
    steps: dict[Path, int] = {}
    damage: list[DamagedError] = []
    for file in (last, best):
        try:
            if file.is_file():
                steps[file] = _step(file)
        except DamagedError as error:
            damage.append(error)
    if not steps and damage:
        raise damage[0]
    if not steps and (run / SUMMARY).is_file():
        raise CheckpointError(
            f"resume={run} is finished, but its checkpoints are gone: there is nothing to go on "
            "from; start a new run, in another directory or without resume="
        )
    if not steps:
        rank_zero_warn(f"resume={run} holds no checkpoint yet: starting from its beginning")
    elif steps.get(last, -1) < steps.get(best, -1):
        if damage:
            rank_zero_warn(f"{damage[0]}; going on from best.ckpt, of step {steps[best]}")
        write_whole(last, best.read_bytes())


def _step(file: Path) -> int:
    """How far the run had come when it wrote a checkpoint."""
    contents = checkpoint.read_plain(file, "resume")
    step = contents.get("global_step") if isinstance(contents, dict) else None
    if not isinstance(step, int) or "optimizer_states" not in contents:
        raise CheckpointError(f"resume={file} was not written by a run of rni_pl")
    return step


def _read(run_dir: Path) -> dict:
    try:
        stored = yaml.safe_load((run_dir / CONFIG).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{run_dir} holds no sound config.yaml") from error
    if not isinstance(stored, dict):
        raise ConfigError(f"{run_dir} holds no sound config.yaml")
    return stored


def _vet(item: str, config: DictConfig, run_dir: Path) -> None:
    """Raise where an override of a run directory could name code, or a file or address to read.

    What this very command gives again is the user's own.
    """
    key, _, value = item.partition("=")
    key = key.lstrip("+~")
    groups = {path.name for path in Path(configuration.config_dir()).iterdir() if path.is_dir()}
    if key == "arch._target_":
        check_trusted({"_target_": value}, _allowed(config.allow, config.overrides))
        return
    elsewhere = key in groups and not re.fullmatch(r"[\w-]+", value)
    # A checkpoint brings its own weights; without one the run would fetch them, or load a file.
    brings_weights = key == "init" or key.removeprefix("arch.") in WEIGHT_ARGUMENTS
    fetches = brings_weights and not has_checkpoint(run_dir)
    # Names with a scheme or a path, timm looks up elsewhere.
    fetches = fetches or (key == "arch.model_name" and not re.fullmatch(r"[\w.-]+", value))
    named = (
        elsewhere
        or re.search(r"\b_(target|partial|args|recursive|convert)_\b", item)
        or "/" in key
        or "@" in key
    )
    if (named or fetches) and item not in config.overrides:
        raise ConfigError(
            f"{run_dir}: {item!r} in its config.yaml is not trusted; if it is yours, give it again"
        )


def _allowed(allow: Collection[str], given: Collection[str]) -> list[str]:
    """Networks that this very command allows, or names."""
    named = [item.partition("=")[2] for item in given if item.startswith("arch._target_=")]
    return [*allow, *named]
