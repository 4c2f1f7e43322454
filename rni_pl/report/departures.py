"""Where the settings of a run depart from the paper's recipe, which `conf/` holds."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from hydra.utils import get_class

from rni_pl.config import compose_config, plain
from rni_pl.errors import ConfigError
from rni_pl.report.collect import Run, flatten
from rni_pl.report.settings import OPEN, matters, parent_of

# Groups of settings that make up the recipe, and of the data's those that do.
OF_RECIPE = ("arch", "optimizer", "trainer", "prune", "distill", "init")
OF_DATA = ("data.batch_size", "data.val_fraction")
# Differing epochs are told apart by the tables, and any precision serves.
NO_DEPARTURE = ("trainer.max_epochs", "trainer.precision")


@dataclass(frozen=True)
class Departures:
    """Settings that differ from the paper's, with the values they have, by stage.

    Attributes:
        penalty: of the regulariser.
        training: of the sparsity training, otherwise.
        finetuning: of pruning and fine-tuning.
    """

    penalty: dict[str, Any]
    training: dict[str, Any]
    finetuning: dict[str, Any]

    @property
    def label(self) -> str:
        """All but the penalty, in words."""
        parts = [f"training {_pairs(self.training)}"] if self.training else []
        parts += [_pairs(self.finetuning)] if self.finetuning else []
        return ", ".join(parts)

    @property
    def are_switches(self) -> bool:
        """Whether more than the penalty differs."""
        return bool(self.training or self.finetuning)


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key}={str(value).lower() if isinstance(value, bool) else value}"
        for key, value in values.items()
    )


@dataclass(frozen=True)
class Judged:
    """A run, the training run behind it (itself, if it is one), and where they depart."""

    run: Run
    trained: Run
    off: Departures

    @property
    def epochs(self) -> tuple[int | None, int | None]:
        """Epochs of training, and of fine-tuning; None where there are none, or none known."""
        tuned = self.run.summary.get("epochs") if self.run.is_pruned else None
        return self.trained.summary.get("epochs"), tuned


def judge(runs: Iterable[Run]) -> list[Judged]:
    """Those of `runs` whose settings are known, and those of the training runs behind them."""
    found, runs = [], list(runs)
    for run in runs:
        trained = parent_of(run, runs) if run.is_pruned else run
        if trained is None or trained.settings is None or run.settings is None:
            continue
        found.append(Judged(run, trained, _departures(run, trained)))
    return found


def _departures(run: Run, trained: Run) -> Departures:
    arch, method = trained.summary["arch"], trained.summary["method"]
    usual = _recipe_of_training(arch, method)
    settings = trained.settings or {}
    if settings.get("arch._target_") != usual["arch._target_"]:  # another's, by whatever name
        usual = {key: value for key, value in usual.items() if not key.startswith("arch.")}
    training = _differing(settings, usual)
    penalty = {key: value for key, value in training.items() if key.startswith("method.")}
    finetuning = {}
    if run.is_pruned:
        finetuning = _differing(run.settings or {}, _recipe_of_pruning())
        if finetuning.get("prune.scope") == _scope(arch, method):
            del finetuning["prune.scope"]
        if run.summary["ratio"] == "auto":
            finetuning["prune.ratio"] = "auto"
    others = {key: value for key, value in training.items() if key not in penalty}
    return Departures(penalty, others, finetuning)


def _differing(settings: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    """A setting that is not known (of a run by an older version) differs from nothing."""
    others = {
        key: settings[key]
        for key, value in usual.items()
        if key in settings and settings[key] != value
    }
    return {**others, **_added(settings, usual)}


def _added(settings: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments beyond those that the recipe gives, to what it has: `+arch.width_mult=0.25`."""
    groups = tuple(group for group in OPEN if any(key.startswith(group) for key in usual))
    return {
        key: value
        for key, value in settings.items()
        if key.startswith(groups)
        and matters(key)
        and value is not None
        and key not in (*usual, *NO_DEPARTURE)
    }


@cache
def _config(arch: str, method: str) -> Any:
    """The paper's recipe for a method; with its value for the network, if it is one of ours."""
    try:
        return compose_config("train", [f"method={method}", f"arch={arch}", "protocol=paper"])
    except ConfigError:
        return compose_config("train", [f"method={method}", "protocol=paper"])


@cache
def _recipe_of_training(arch: str, method: str) -> dict[str, Any]:
    try:
        config = plain(_config(arch, method))
    except ConfigError:  # a regulariser that has no file here: its values are its own
        config = plain(compose_config("train", ["protocol=paper"]))
        config["method"] = {}
    return _of_recipe(config)


@cache
def _recipe_of_pruning() -> dict[str, Any]:
    config = plain(compose_config("prune", ["checkpoint=none"]))
    training = _recipe_of_training("resnet56", "rni")
    return {**_of_recipe(config), **{key: training[key] for key in OF_DATA}}


def _of_recipe(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value
        for key, value in flatten(config).items()
        if matters(key)
        and key not in NO_DEPARTURE
        and (key.startswith("method.") or key.partition(".")[0] in OF_RECIPE or key in OF_DATA)
    }


@cache
def _scope(arch: str, method: str) -> str | None:
    """The scope that a method prunes in, unless it is told another."""
    try:
        regulariser: Any = get_class(_config(arch, method).method._target_)
    except ConfigError:
        return None
    return regulariser.scope
