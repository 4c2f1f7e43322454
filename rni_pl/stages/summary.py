"""The figures of a run, as `summary.json` holds them and a table shows them."""

from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
from rich.console import Console
from rich.table import Table

from rni_pl.callbacks.history import Record
from rni_pl.classifier import Classifier
from rni_pl.cost import macs, parameter_count
from rni_pl.pruning import PruningReport
from rni_pl.spec import ModelSpec


@dataclass(frozen=True)
class Figures:
    """A network's accuracy on the test set, parameters, and MACs of one image."""

    acc: float
    params: int
    macs: int

    @classmethod
    def of(cls, classifier: Classifier, acc: float) -> "Figures":
        """Those of the network as it is now."""
        model = classifier.model
        return cls(acc, parameter_count(model), macs(model, classifier.spec.image_shape))


def of_training(
    classifier: Classifier, test_acc: float, record: Record, trainer: pl.Trainer
) -> dict[str, Any]:
    """What `summary.json` of a training run holds, but for its seed."""
    spec, found = classifier.spec, Figures.of(classifier, test_acc)
    return {
        "dataset": spec.data["name"],
        "arch": spec.arch_name,
        "method": spec.method,
        "test_acc": found.acc,
        "best_epoch": record.best_epoch,
        "epochs": trainer.current_epoch,
        "params": found.params,
        "macs": found.macs,
        "seconds": record.seconds,
        "images_per_second": record.images_per_second,
        "val_acc": record.best_val_acc,
        "precision": trainer.precision,
    }


def of_finetuning(test_acc: float, record: Record, trainer: pl.Trainer) -> dict[str, Any]:
    """What fine-tuning adds to `of_pruning`."""
    return {
        "acc_finetuned": test_acc,
        "best_epoch": record.best_epoch,
        "val_acc": record.best_val_acc,
        "epochs": trainer.current_epoch,
        "precision": trainer.precision,
        "seconds": record.seconds,
    }


def of_pruning(
    spec: ModelSpec,
    report: PruningReport,
    dense: Figures,
    pruned: Figures,
) -> dict[str, Any]:
    """What `summary.json` of a pruning run holds before fine-tuning."""
    return {
        "dataset": spec.data.get("name"),
        "arch": spec.arch_name if spec.arch else "given",
        "method": spec.method,
        "ratio": report.ratio,
        "scope": report.scope,
        "target": report.target,
        "acc_dense": dense.acc,
        "acc_pruned": pruned.acc,
        "acc_finetuned": None,
        "params_dense": dense.params,
        "params_pruned": pruned.params,
        "macs_dense": dense.macs,
        "macs_pruned": pruned.macs,
        "channels_dense": report.channels_dense,
        "channels_pruned": report.channels_pruned,
        "kept": {name: len(channels) for name, channels in report.kept.items()},
        "widths": report.widths,
        "skipped": report.skipped,
    }


def print_table(summary: dict[str, Any]) -> None:
    """Accuracy, parameters, MACs and channels: before, after removal, after fine-tuning."""
    title = f"{summary['arch']} on {summary['dataset']}, {summary['method']}: "
    table = Table(title=f"{title}ratio {summary['ratio']} ({summary['scope']})")
    table.add_column("")
    timed = summary.get("latency")
    columns = ["test accuracy", "parameters", "MACs", "channels"]
    for column in [*columns, "latency"] if timed else columns:
        table.add_column(column, justify="right")
    for row, acc, size in (
        ("dense", "acc_dense", "dense"),
        ("pruned", "acc_pruned", "pruned"),
        ("fine-tuned", "acc_finetuned", "pruned"),
    ):
        counts = (f"{summary[f'{key}_{size}']:,}" for key in ("params", "macs", "channels"))
        times = [f"{timed[f'{size}_ms']:.3g} ms"] if timed else []
        table.add_row(row, f"{summary[acc]:.2%}", *counts, *times)
    if timed:
        engine, batch, speedup = (timed[key] for key in ("engine", "batch", "speedup"))
        table.caption = f"latency: {engine}, CPU, batch {batch}; speed-up {speedup:.2f}x"
    Console().print(table)
