"""Stage 1: sparsity training."""

from dataclasses import replace
from pathlib import Path

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from pytorch_lightning.utilities import rank_zero_warn
from torch import nn

from rni_pl.callbacks import History, SparsityRegulariser
from rni_pl.classifier import Classifier
from rni_pl.config import plain
from rni_pl.data import ClassificationData
from rni_pl.errors import ConfigError, PruningError, RniError, first_line
from rni_pl.norm import NAMES, norm_kind, scaled_norms
from rni_pl.pruning.carryover import to_sigbn
from rni_pl.pruning.oneshot import plan_that_fits
from rni_pl.pruning.plan import PruningOptions
from rni_pl.pruning.trace import trace
from rni_pl.regularisers import Regulariser
from rni_pl.spec import BRINGS_WEIGHTS, WEIGHT_ARGUMENTS, ModelSpec, build, check_output
from rni_pl.stages import rundir, runs
from rni_pl.stages.outcome import Outcome
from rni_pl.stages.resume import last_checkpoint
from rni_pl.stages.summary import of_training
from rni_pl.stages.warmstart import has_sigbn, load_state, read_state


def train(config: DictConfig, run_dir: Path, watch_test: bool = False) -> Outcome:
    """Train as configured; everything that can be wrong is found before the first step.

    `watch_test` logs the test accuracy of every epoch, for watching only.
    """
    last = last_checkpoint(config)
    regulariser = runs.make(config.method, "method", Regulariser)
    data = runs.make_data(config, watch_test)
    pl.seed_everything(config.seed, verbose=False)
    classifier = new_classifier(config, data, regulariser, warm=last is None)
    runs.check_norms(config, classifier.model)
    history = History()
    trainer = runs.make_trainer(config, run_dir, [SparsityRegulariser(regulariser), history])
    with rundir.begun(trainer, config, run_dir):
        runs.fit(trainer, classifier, data, run_dir, last, config.compile)
    test_acc = runs.test(trainer, classifier, data)
    summary = {**of_training(classifier, test_acc, history.record, trainer), "seed": config.seed}
    if trainer.is_global_zero:
        rundir.finish(trainer, config, summary, run_dir)
    return Outcome(runs.finished(classifier), history.record, summary)


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


def new_classifier(
    config: DictConfig, data: ClassificationData, regulariser: Regulariser, warm: bool = True
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
        data=runs.plain_data_values(config),
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
    return Classifier(spec.to_dict(), plain(config.optimizer), module=model)


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
