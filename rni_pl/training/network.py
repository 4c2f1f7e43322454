"""The network that training begins with: built, or started from trained weights."""

from dataclasses import replace

import torch
from omegaconf import DictConfig
from pytorch_lightning.utilities import rank_zero_warn
from torch import nn

from rni_pl.config import plain
from rni_pl.data import ClassificationData
from rni_pl.errors import ConfigError, PruningError, RniError, first_line
from rni_pl.norm import NAMES, norm_kind, scaled_norms
from rni_pl.pruning.carryover import to_sigbn
from rni_pl.pruning.oneshot import plan_that_fits
from rni_pl.pruning.plan import PruningOptions
from rni_pl.pruning.trace import trace
from rni_pl.regularisers import Regulariser
from rni_pl.runs.spec import BRINGS_WEIGHTS, WEIGHT_ARGUMENTS, ModelSpec, build, check_output
from rni_pl.training import fitting
from rni_pl.training.module import Classifier
from rni_pl.training.recipe import Recipe
from rni_pl.training.warmstart import has_sigbn, load_state, read_state


def new_classifier(
    config: DictConfig,
    data: ClassificationData,
    regulariser: Regulariser,
    recipe: Recipe,
    warm: bool = True,
) -> Classifier:
    """A freshly initialised network for the data at hand, as the method wants its norm layers.

    Unless `warm`, weights that the configuration would fetch or read are left aside: a checkpoint
    brings them.
    """
    arch = plain(config.arch)
    cold = {key: value for key, value in arch.items() if key not in WEIGHT_ARGUMENTS}
    spec = ModelSpec(
        arch=arch if warm else cold,
        num_classes=data.num_classes,
        norm=regulariser.norm,
        image_shape=list(data.image_shape),
        method=type(regulariser).__name__.lower(),
        scope=regulariser.scope,
        data=fitting.plain_data_values(config),
        classes=list(data.classes),
        mean=list(data.mean),
        std=list(data.std),
    )
    model = _starting(spec, config.init) if warm else build(spec)
    check_output(model, spec)
    if not any(scaled_norms(model)):
        raise ConfigError(f"arch={spec.arch_name} has no BatchNorm whose scales could be ranked")
    if norm_kind(model) != spec.norm:
        raise ConfigError(
            f"method={spec.method} is for {NAMES[spec.norm]}, arch={spec.arch_name} brings "
            f"{NAMES[norm_kind(model)]} of its own"
        )
    _warn_if_unprunable(model, spec)
    # Checkpoints bring their own weights: what fetched the first ones is left out of them.
    spec.arch = cold
    model.model_spec = spec  # type: ignore[assignment]
    return Classifier(spec.to_dict(), recipe, model)


def _starting(spec: ModelSpec, init: str | None) -> nn.Module:
    """The network to begin with; trained scales are carried over where the method wants SigBN."""
    fetched = sorted(f"arch.{key}" for key in BRINGS_WEIGHTS if spec.arch.get(key))
    if init is None and not fetched:
        return build(spec)
    model = build(replace(spec, norm="bn"))
    if init is not None:
        model = _loaded(model, spec, init)
    if spec.norm in ("bn", norm_kind(model)):
        return model
    try:
        model, carried = to_sigbn(model, torch.zeros(1, *spec.image_shape))
    except RniError:
        raise
    except ValueError as error:  # norm layers that do more
        raise ConfigError(f"arch={spec.arch_name}: {first_line(error)}") from error
    source = ", ".join(fetched) if init is None else f"init={init}"
    rank_zero_warn(f"{source}: {carried.describe()}")
    return model.train()


def _loaded(model: nn.Module, spec: ModelSpec, init: str) -> nn.Module:
    """The weights of a file in `model`, or in one with SigBN if that is what the file has."""
    states = read_state(init)
    if has_sigbn(states, model):
        if spec.norm == "bn":
            raise ConfigError(f"init={init} has SigBN scales, and method={spec.method} BatchNorm's")
        model = build(spec)
    load_state(model, states, init)
    return model


def _warn_if_unprunable(model: nn.Module, spec: ModelSpec) -> None:
    """Say now, and not after hours of training, what pruning will raise."""
    image = next(model.parameters()).new_zeros(1, *spec.image_shape)
    try:
        with torch.random.fork_rng(devices=[]):
            graph = trace(model, image)
            plan_that_fits(graph, PruningOptions(0.5, coupled=True))
    except PruningError as error:
        rank_zero_warn(
            f"arch={spec.arch_name} can be trained, but not pruned as it is: {first_line(error)}"
        )
