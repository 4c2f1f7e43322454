"""Resuming: what a run directory may have called, and the checkpoint that a run goes on from.

Nothing in a run directory is trusted, see SECURITY.md.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from pytorch_lightning.utilities import rank_zero_warn
from torch import nn

from rni_pl.config import config_dir, plain
from rni_pl.errors import CheckpointError, ConfigError, DamagedError
from rni_pl.runs import checkpoint, stored
from rni_pl.runs.files import BEST, CONFIG, LAST, ORIGIN, SUMMARY, write_whole
from rni_pl.runs.spec import WEIGHT_ARGUMENTS, ModelSpec, check_trusted


def begin(config: DictConfig) -> Path | None:
    """The `last.ckpt` that a run resumes from, the newest sound checkpoint; None: it begins.

    Raises:
        CheckpointError: see `restore_last`.
    """
    if config.resume is None:
        return None
    restore_last(Path(config.resume))
    return last_checkpoint(config)


def last_checkpoint(config: DictConfig) -> Path | None:
    """The `last.ckpt` that a run resumes from; None: it starts from its beginning."""
    if config.resume is None:
        return None
    last = Path(config.resume) / LAST
    return last if last.is_file() else None


def resumed_step(config: DictConfig) -> int | None:
    """The step that a run resumes from; None: it starts from its beginning."""
    last = last_checkpoint(config)
    return None if last is None else _read(last)["global_step"]


def vet(run: stored.Resumed) -> None:
    """Refuse a stored configuration that would call, fetch or read what this command does not name.

    A ``_target_`` may stand in the shipped `conf/`, in an override or in `allow`; a network may be
    of `rni_pl.models`, torchvision or timm, too.

    Raises:
        ConfigError: something else is named.
        CheckpointError: a network is not trusted.
    """
    config, run_dir = run.config, Path(run.config.resume)
    values = plain(config)
    named = {*config.allow, *run.targets}
    known = named | _shipped_targets()
    for place, target in stored.targets(values):
        if target not in known and place != "arch":
            raise ConfigError(
                f"{run_dir}/{CONFIG}: {place}._target_={target} is not trusted; if it is yours, "
                f"allow=[{target}]"
            )
    arch = values.get("arch")
    if arch is not None:
        check_trusted({k: v for k, v in arch.items() if k not in WEIGHT_ARGUMENTS}, named)
    if has_checkpoint(run_dir):
        return  # it brings its own weights
    fetched = {f"arch.{key}" for key in WEIGHT_ARGUMENTS if (arch or {}).get(key)}
    fetched |= {"init"} if values.get("init") else set()
    for key in sorted(fetched - run.given):
        raise ConfigError(
            f"{run_dir}/{CONFIG}: {key} names weights to read and is not trusted; if it is yours, "
            "give it again"
        )


def _shipped_targets() -> set[str]:
    files = Path(config_dir()).rglob("*.yaml")
    return {name for file in files for name in re.findall(r"_target_: *([\w.]+)", file.read_text())}


def has_checkpoint(run_dir: Path) -> bool:
    """Whether there is one to resume from, sound or not."""
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
            "a new run, in another directory or with overwrite=true"
        )
    return True


def restore_last(run_dir: Path) -> None:
    """Make `last.ckpt` the newest sound checkpoint of a run, if there is one.

    `best.ckpt` is copied to it where it is damaged, or older because the run was killed between the
    two. Epochs that are lost with it are trained again, to the same weights.

    Raises:
        CheckpointError: a checkpoint holds more than plain data, all are damaged, or those of a
            finished run are gone.
    """
    last, best = run_dir / LAST, run_dir / BEST
    steps: dict[Path, int] = {}
    damage: list[DamagedError] = []
    for file in (last, best):
        try:
            if file.is_file():
                steps[file] = _read(file)["global_step"]
        except DamagedError as error:
            damage.append(error)
    if not steps and damage:
        raise damage[0]
    if not steps and (run_dir / SUMMARY).is_file():
        raise CheckpointError(
            f"resume={run_dir} is finished, but its checkpoints are gone: there is nothing to "
            "resume from; start a new run, in another directory or with overwrite=true"
        )
    if not steps:
        rank_zero_warn(f"resume={run_dir} holds no checkpoint yet: starting from its beginning")
    elif steps.get(last, -1) < steps.get(best, -1):
        if damage:
            rank_zero_warn(f"{damage[0]}; going on from best.ckpt, of step {steps[best]}")
        write_whole(last, best.read_bytes())


def check_fits(last: Path, spec: ModelSpec, model: nn.Module, images: list[int]) -> None:
    """See that a run's last checkpoint is one of this network and these data.

    Args:
        last: the checkpoint.
        spec: description of the network as the configuration and the data make it.
        model: the network.
        images: number of images that train, validate and test.

    Raises:
        CheckpointError: it is of another network, or names one that is not trusted.
        ConfigError: the data are others.
    """
    run_dir, contents = last.parent.parent, _read(last)
    checkpoint.check(contents, last, allow=[spec.arch.get("_target_", "")])
    known = checkpoint.spec_of(contents).classes
    before = contents.get("callbacks", {}).get("Continuation", {}).get("images", images)
    if known != spec.classes or before != images:
        raise ConfigError(
            f"resume={run_dir} was trained on other data than there are in data.root now: "
            f"{_of_data(known, before)} then, {_of_data(spec.classes, images)} now"
        )
    weights, own = checkpoint.weights_of(contents["state_dict"]), model.state_dict()
    if odd := dict(_shapes(weights).items() ^ _shapes(own).items()):
        raise CheckpointError(
            f"resume={run_dir}: its weights are those of another network than its configuration "
            f"builds; {min(odd)} differs"
        )


def check_epochs(run: stored.Resumed) -> None:
    """Raise `ConfigError` where a run is to end before the epoch that it has come to."""
    last, epochs = last_checkpoint(run.config), run.config.trainer.max_epochs
    if last is None or "trainer.max_epochs" not in run.given:
        return
    begun = _read(last).get("epoch", -1) + 1
    if epochs < begun:
        raise ConfigError(
            f"trainer.max_epochs={epochs} is not allowed: {run.config.resume} has come to epoch "
            f"{begun}"
        )


def _of_data(classes: list[str], images: list[int]) -> str:
    names = ", ".join(classes[:3])
    return f"{len(classes)} classes ({names}, ...) and {'+'.join(map(str, images))} images"


def _shapes(state: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(getattr(value, "shape", ())) for key, value in state.items()}


def _read(file: Path) -> dict[str, Any]:
    """A checkpoint that training can go on from."""
    contents = checkpoint.read_plain(file, "resume")
    step = contents.get("global_step") if isinstance(contents, dict) else None
    if not isinstance(step, int) or "optimizer_states" not in contents:
        raise CheckpointError(f"resume={file} was not written by a run of rni_pl")
    return contents
