"""Stages 2 and 3: one-shot pruning and fine-tuning."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from pytorch_lightning.utilities import rank_zero_only, rank_zero_warn
from torch import Tensor, nn

from rni_pl.callbacks import GradualPruning, History
from rni_pl.callbacks.gradual_pruning import shares
from rni_pl.config import plain
from rni_pl.data import ClassificationData
from rni_pl.latency.timing import latency
from rni_pl.norm.calibration import recalibrate
from rni_pl.progress import busy, track
from rni_pl.pruning import Importance, PruningReport, prune, selection
from rni_pl.runs import checkpoint, directory, resume
from rni_pl.runs.files import BEFORE, ORIGIN, PLAN, SUMMARY, read_json, write_json, write_whole
from rni_pl.runs.summary import (
    Figures,
    Outcome,
    Record,
    of_finetuning,
    of_pruning,
    of_steps,
    print_table,
)
from rni_pl.training import fitting, inherit, since_birth
from rni_pl.training.losses import CrossEntropy, Distillation
from rni_pl.training.module import Classifier
from rni_pl.training.sharing import shared
from rni_pl.training.trainer import make_trainer

# Settings of `prune` that are no options of the removal itself.
OF_THE_STAGE = (
    "recalibrate", "measure_latency", "plan_only", "plan", "importance", "steps", "epochs_per_step",
    "schedule",
)  # fmt: skip


def prune_and_finetune(
    config: DictConfig,
    run_dir: Path,
    watch_test: bool = False,
    model: nn.Module | None = None,
    method: str = "none",
) -> Outcome:
    """Load, prune a copy, measure both, fine-tune the copy, test, summarise.

    The network comes from `config.checkpoint`, or is `model`, from Python, trained with `method`;
    that of a run which is resumed is pruned already. `watch_test` logs the test accuracy of every
    epoch, for watching only.
    """
    last = resume.begin(config)
    recipe = fitting.make_recipe(config)
    if model is None:
        classifier = inherit.load(config, recipe, last)
        config = config if last else inherit.data_of(config, classifier.spec)
        data = fitting.make_data(config, watch_test)
        inherit.take_data(classifier, config, data)
    else:
        data = fitting.make_data(config, watch_test)
        classifier = inherit.around(model, method, config, recipe, data)
    fitting.check(config, classifier, data, last)
    if config.prune.plan_only:
        return only_plan(config, run_dir, classifier, data)
    pl.seed_everything(config.seed, verbose=False)
    dense, spec = classifier.model, classifier.spec
    pruned, report = (None, None) if last else remove_channels(config, classifier, data)
    classifier.loss = CrossEntropy.of(data, **config.loss)
    if config.distill.weight:
        teacher = inherit.teacher(config) if last else dense
        classifier.loss = Distillation(teacher, **config.distill, hard=classifier.loss)
    history, steps = History(), _further_steps(config, classifier, data, report)
    trainer = make_trainer(config, run_dir, [*steps, history], report)
    directory.keep_source(config, run_dir)

    with directory.written(trainer, config, run_dir):
        if pruned is None or report is None:
            summary = read_json(run_dir / BEFORE)
        else:
            before = _dense_figures(config, trainer, classifier, data)
            classifier.replace_model(pruned)
            summary = of_pruning(spec, report, before, _figures(trainer, classifier, data))
            if not spec.born:  # what went in training was said before
                _warn_if_missed(summary, report.limited)
            if trainer.is_global_zero:
                if config.prune.measure_latency:
                    with busy("timing"):
                        summary["latency"] = latency(dense, classifier.model, spec.image_shape)
                _keep(summary, config, run_dir)
        fitting.fit(trainer, classifier, data, run_dir, last, config.compile)
    test_acc = fitting.test(trainer, classifier, data)

    if steps:
        summary |= of_steps(summary, classifier.model, spec.image_shape)
        summary["ratio"] = config.prune.ratio
    summary |= of_finetuning(test_acc, history.record, trainer.current_epoch)
    summary |= {"precision": trainer.precision, "seed": config.seed}
    if trainer.is_global_zero:
        write_json(summary, run_dir / SUMMARY)
        fitting.log_hyperparameters(trainer, config, summary)
        print_table(summary)
    return Outcome(fitting.finished(classifier), history.record, summary)


def only_plan(
    config: DictConfig, run_dir: Path, classifier: Classifier, data: ClassificationData
) -> Outcome:
    """Print what would be removed, and write it to `plan.json`; nothing is trained."""
    _, report = remove_channels(config, classifier, data)
    if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
        print(report, flush=True)
        directory.clear(run_dir)
        write_json(report.plan, run_dir / PLAN)
    return Outcome(fitting.finished(classifier), Record(), {})


def remove_channels(
    config: DictConfig, classifier: Classifier, data: ClassificationData
) -> tuple[nn.Module, PruningReport]:
    """A smaller copy of the network, as `config.prune` says, and what was removed.

    Several processes remove the same channels of the same weights, on the CPU.

    Raises:
        PruningError: it cannot be pruned so.
    """
    options = _options(config, classifier)
    options["importance"] = _importance(config, classifier, data)
    if config.prune.steps > 1:
        options["ratio"] = shares(config.prune.ratio, config.prune.steps, config.prune.schedule)[0]
    if config.prune.plan is not None:
        options |= {"plan": read_json(Path(config.prune.plan)), "ratio": None}
    example = torch.zeros(1, *classifier.spec.image_shape)
    if config.prune.absorb:
        ((example, _),) = data.calibration_batches(1)
    born = classifier.spec.born
    with busy("pruning"):
        if born:
            options = since_birth.remaining(classifier.model, example, options, born)
        pruned, report = prune(classifier.model, example, **options)
        if born:
            report = since_birth.of_born(report, config.prune.ratio, born)
    batches = config.prune.recalibrate
    if batches:
        images = (images for images, _ in data.calibration_batches(batches))
        recalibrate(pruned, track(images, "recalibrating", batches))
    return pruned, report


def _further_steps(
    config: DictConfig,
    classifier: Classifier,
    data: ClassificationData,
    first: PruningReport | None,
) -> list[pl.Callback]:
    """The steps that come while fine-tuning, if there are any; `first` is what the first did."""
    asked = config.prune
    if asked.steps == 1:
        return []
    options = _options(config, classifier)
    del options["ratio"]
    return [
        GradualPruning(
            asked.ratio, asked.steps, asked.epochs_per_step, asked.schedule, options=options,
            first=first, importance=lambda: _importance(config, classifier, data),
        )
    ]  # fmt: skip


def _options(config: DictConfig, classifier: Classifier) -> dict[str, Any]:
    """Keyword arguments of `rni_pl.prune`, all but the importance and a plan."""
    given = plain(config.prune)
    options = {key: value for key, value in given.items() if key not in OF_THE_STAGE}
    return {**options, "scope": options["scope"] or classifier.spec.scope}


def _importance(config: DictConfig, classifier: Classifier, data: ClassificationData) -> Any:
    """What ranks the channels, calibrated on training images where it wants any."""
    node = config.prune.importance
    importance = fitting.make(node, "prune.importance", object)
    if not isinstance(importance, Importance):
        return importance  # a function of one layer
    batches = data.calibration_batches(importance.wanted)
    return importance.calibrated(
        classifier.model, track(batches, "calibrating", importance.wanted), _cross_entropy
    )


def _cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    device = next(model.parameters()).device
    images, labels = (x.to(device) for x in batch)
    return nn.functional.cross_entropy(model(images), labels)


def _figures(trainer: pl.Trainer, classifier: Classifier, data: ClassificationData) -> Figures:
    acc = fitting.test(trainer, classifier, data)
    return Figures.of(classifier.model, classifier.spec.image_shape, acc)


def _dense_figures(
    config: DictConfig, trainer: pl.Trainer, classifier: Classifier, data: ClassificationData
) -> Figures:
    """Those of the network before; one measurement serves all jobs of a sweep."""
    if config.checkpoint is None:  # a network from Python has no file to know it by
        return _figures(trainer, classifier, data)
    file = checkpoint.locate(config.checkpoint)
    settings = (plain(config.data), plain(config.trainer))
    key = (str(file.resolve()), file.stat().st_mtime_ns, *settings)
    return shared("dense figures", key, lambda: _figures(trainer, classifier, data))


def _keep(summary: dict[str, Any], config: DictConfig, run_dir: Path) -> None:
    """Write what a run that is resumed after pruning needs to know."""
    write_json(summary, run_dir / BEFORE)
    if config.checkpoint is not None:
        write_whole(run_dir / ORIGIN, checkpoint.digest(config.checkpoint) + "\n")


def _warn_if_missed(summary: dict[str, Any], limited: bool) -> None:
    """Say so where another share is removed than was asked for, and why."""
    if isinstance(summary["ratio"], str):
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
