"""Where the settings of a run depart from the paper's recipe, which `conf/` holds."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from hydra.utils import get_class

from rni_pl.config import compose_config, plain
from rni_pl.errors import ConfigError
from rni_pl.report.budgets import Budget
from rni_pl.report.collect import Run, flatten
from rni_pl.report.settings import OPEN, matters, parent_of

# Groups of settings that make up the recipe, and of the data's those that do.
OF_RECIPE = ("optimizer", "trainer", "prune", "distill", "init")
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
        beyond: arguments that the recipe does not give, as in `+arch.width_mult=0.25`, or another
            network under the name of ours. These make no switch, but are not the paper's.
    """

    penalty: dict[str, Any]
    training: dict[str, Any]
    finetuning: dict[str, Any]
    beyond: dict[str, Any]

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
    def budget(self) -> Budget:
        """The epochs that were set, which led to this network."""
        if not self.run.is_pruned:
            return Budget(_epochs(self.trained))
        return Budget(_epochs(self.trained), _epochs(self.run), is_tuned=True)


def _epochs(run: Run) -> int | None:
    return (run.settings or {}).get("trainer.max_epochs", run.summary.get("epochs"))


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
    settings = trained.settings or {}
    training = _differing(settings, _recipe_of_training(arch, method))
    beyond = _beyond(settings, _config(arch, method))
    if not _is_ours(f"arch={arch}"):
        beyond = {key: value for key, value in beyond.items() if not key.startswith("arch.")}
    penalty = {key: value for key, value in training.items() if key.startswith("method.")}
    finetuning = {}
    if run.is_pruned:
        finetuning = _differing(run.settings or {}, _recipe_of_pruning())
        beyond |= _beyond(run.settings or {}, _config_of_pruning())
        if finetuning.get("prune.scope") == _scope(method):
            del finetuning["prune.scope"]
        if run.summary["ratio"] == "auto":
            finetuning["prune.ratio"] = "auto"
    others = {key: value for key, value in training.items() if key not in penalty}
    return Departures(penalty, others, finetuning, beyond)


def _differing(settings: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    """A setting that is not known (of a run by an older version) differs from nothing."""
    return {
        key: settings[key]
        for key, value in usual.items()
        if key in settings and settings[key] != value
    }


def _beyond(settings: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """Arguments of open groups that `config` does not give, or gives otherwise."""
    usual = flatten(plain(config))
    return {
        key: value
        for key, value in settings.items()
        if key.startswith(OPEN)
        and matters(key)
        and key not in NO_DEPARTURE
        and not (key in usual and key.startswith(OF_RECIPE))
        and value != usual.get(key)
    }


@cache
def _is_ours(choice: str) -> bool:
    """Whether `conf/` has a choice, such as ``"arch=resnet56"``."""
    try:
        compose_config("train", [choice, "protocol=paper"])
    except ConfigError:
        return False
    return True


@cache
def _config(arch: str, method: str) -> Any:
    """The paper's recipe for a network and a method, or for what is ours of the two."""
    ours = [choice for choice in (f"arch={arch}", f"method={method}") if _is_ours(choice)]
    return compose_config("train", [*ours, "protocol=paper"])


@cache
def _config_of_pruning() -> Any:
    return compose_config("prune", ["checkpoint=none"])


@cache
def _recipe_of_training(arch: str, method: str) -> dict[str, Any]:
    config = plain(_config(arch, method))
    if not _is_ours(f"method={method}"):  # its values are its own
        config["method"] = {}
    return _of_recipe(config)


@cache
def _recipe_of_pruning() -> dict[str, Any]:
    training = _recipe_of_training("resnet56", "rni")
    return {
        **_of_recipe(plain(_config_of_pruning())),
        **{key: training[key] for key in OF_DATA},
    }


def _of_recipe(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value
        for key, value in flatten(config).items()
        if matters(key)
        and key not in NO_DEPARTURE
        and (key.startswith("method.") or key.partition(".")[0] in OF_RECIPE or key in OF_DATA)
    }


@cache
def _scope(method: str) -> str | None:
    """The scope that a method of ours prunes in, unless it is told another."""
    if not _is_ours(f"method={method}"):
        return None
    regulariser: Any = get_class(compose_config("train", [f"method={method}"]).method._target_)
    return regulariser.scope
