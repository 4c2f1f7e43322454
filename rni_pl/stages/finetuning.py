"""Stages 2 and 3: one-shot pruning and fine-tuning."""

import copy
import os
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities import rank_zero_warn
from torch import nn

from rni_pl import checkpoint
from rni_pl import config as configuration
from rni_pl.callbacks import History, OneShotPruning
from rni_pl.classifier import Classifier
from rni_pl.data import ClassificationData
from rni_pl.distillation import Distillation
from rni_pl.errors import ConfigError
from rni_pl.files import BEFORE, ORIGIN, read_json, write_json, write_whole
from rni_pl.latency.timing import latency
from rni_pl.progress import busy
from rni_pl.pruning import prune, selection
from rni_pl.stages import inheriting, rundir, runs
from rni_pl.stages.outcome import Outcome
from rni_pl.stages.resume import has_same_weights, last_checkpoint
from rni_pl.stages.sharing import shared
from rni_pl.stages.summary import Figures, of_finetuning, of_pruning, print_table

# What `config.checkpoint` says of a network that was given in Python.
GIVEN = "given"


def prune_and_finetune(
    config: DictConfig,
    run_dir: Path,
    watch_test: bool = False,
    classifier: Classifier | None = None,
) -> Outcome:
    """Measure, prune, measure, fine-tune, measure.

    The network comes from `config.checkpoint`, or is the one given; that of a run which is resumed
    is pruned already. `watch_test` logs the test accuracy of every epoch, for watching only.
    """
    last = last_checkpoint(config)
    if classifier is None:
        recipe = configuration.plain(config.optimizer)
        source = last or config.checkpoint
        classifier = Classifier.load_from_checkpoint(
            source, allow=list(config.allow), recipe=recipe
        )
        config = inheriting.with_data_of(config, classifier.spec)
    data = runs.make_data(config, watch_test)
    inheriting.take_data(classifier, config, data)
    runs.check_norms(config, classifier.model)
    pl.seed_everything(config.seed, verbose=False)
    history = History()
    trainer = runs.make_trainer(config, run_dir, [history])
    if config.distill.weight:
        classifier.objective = Distillation(_teacher(config, classifier, last), **config.distill)
    pruning = None
    if last is None:
        pruning = _pruning(config, classifier)
        if config.checkpoint != GIVEN:
            config = OmegaConf.merge(config, {"checkpoint": os.path.abspath(config.checkpoint)})  # type: ignore[assignment]
            _check_place(config.checkpoint, run_dir)
    with rundir.begun(trainer, config, run_dir):
        if pruning is None:
            summary = read_json(run_dir / BEFORE)
        else:
            if trainer.is_global_zero and config.checkpoint != GIVEN:
                write_whole(run_dir / ORIGIN, checkpoint.digest(config.checkpoint) + "\n")
            summary = _prune(config, pruning, trainer, classifier, data)
            if trainer.is_global_zero:
                write_json(summary, run_dir / BEFORE)
        runs.fit(trainer, classifier, data, run_dir, last, config.compile)
    record, test_acc = history.record, runs.test(trainer, classifier, data)
    summary.update(of_finetuning(test_acc, record, trainer), seed=config.seed)
    if trainer.is_global_zero:
        rundir.finish(trainer, config, summary, run_dir)
        print_table(summary)
    return Outcome(runs.finished(classifier), record, summary)


def _check_place(given: str, run_dir: Path) -> None:
    """Refuse to write over the run whose network is pruned."""
    file = checkpoint.locate(given).resolve()
    if file in [other.resolve() for other in rundir.files_of(run_dir)]:
        raise ConfigError(
            f"checkpoint={given} is in {run_dir}, which this run would write over: choose another "
            "hydra.run.dir"
        )


def _teacher(config: DictConfig, classifier: Classifier, last: Path | None) -> nn.Module:
    """The unpruned network: the one at hand, or, where a run goes on, that of its checkpoint."""
    if last is None:
        return copy.deepcopy(classifier.model)
    has_same_weights(config.checkpoint, Path(config.resume))
    return checkpoint.load_model(config.checkpoint, allow=list(config.allow))


def _pruning(config: DictConfig, classifier: Classifier) -> OneShotPruning:
    """The callback that will prune; what it could not prune is refused now."""
    options = configuration.plain(config.prune)
    del options["latency"]  # a measurement
    options["scope"] = options["scope"] or classifier.spec.scope
    pruning = OneShotPruning(**options)
    example = torch.zeros(1, *classifier.spec.image_shape)
    prune(classifier.model, example, **vars(pruning.options))
    return pruning


def _prune(
    config: DictConfig,
    pruning: OneShotPruning,
    trainer: pl.Trainer,
    classifier: Classifier,
    data: ClassificationData,
) -> dict[str, Any]:
    """Prune the classifier's network, and measure it before and after."""
    unpruned = classifier.model
    dense = Figures.of(classifier, _dense_accuracy(config, trainer, classifier, data))
    trainer.callbacks.insert(0, pruning)  # type: ignore[attr-defined]
    pruned = Figures.of(classifier, runs.test(trainer, classifier, data))
    assert pruning.report is not None
    summary = of_pruning(classifier.spec, pruning.report, dense, pruned)
    _warn_if_missed(summary, pruning.report.limited)
    if config.prune.latency and trainer.is_global_zero:
        with busy("timing"):
            summary["latency"] = latency(unpruned, classifier.model, classifier.spec.image_shape)
    return summary


def _dense_accuracy(
    config: DictConfig, trainer: pl.Trainer, classifier: Classifier, data: ClassificationData
) -> float:
    """Test accuracy before pruning; one measurement serves all jobs of a sweep."""

    def measure() -> float:
        return runs.test(trainer, classifier, data)

    if config.checkpoint == GIVEN:  # a network from Python has no file to know it by
        return measure()
    file = checkpoint.locate(config.checkpoint)
    settings = (configuration.plain(config.data), configuration.plain(config.trainer))
    key = (str(file.resolve()), file.stat().st_mtime_ns, *settings)
    return shared("dense accuracy", key, measure)


def _warn_if_missed(summary: dict[str, Any], limited: bool) -> None:
    """Say so where another share is removed than was asked for, and why."""
    if summary["ratio"] == "auto":
        return
    target = summary["target"]
    removed = 1 - summary[f"{target}_pruned"] / summary[f"{target}_dense"]
    if abs(removed - summary["ratio"]) > selection.TOLERANCE:
        rank_zero_warn(
            f"prune.ratio={summary['ratio']} of {target} was asked for, {removed:.3f} is removed: "
            + _why_missed(target, removed > summary["ratio"], limited)
        )


def _why_missed(target: str, is_more: bool, limited: bool) -> str:
    if target != "channels":
        return (
            "the floors (prune.min_channels, prune.round_to), equal scores or the network allow no "
            "closer"
        )
    if limited and not is_more:
        return "the floors (prune.min_channels, prune.round_to) have layers keep more"
    return (
        "of the channels that can go, all go that score at or below the quantile, and no others "
        "(the paper's rule)"
    )
