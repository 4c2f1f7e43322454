"""The figures of a run, as `summary.json` holds them and a table shows them."""

from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import nn

from rni_pl.cost import macs, parameter_count
from rni_pl.pruning import PruningReport
from rni_pl.pruning.importance import rows_of
from rni_pl.runs.spec import ModelSpec


@dataclass
class Record:
    """Figures of a run so far; one accuracy (a fraction) for each validation.

    `epoch` says after which epoch, counted from 0, each was. `seconds` is time spent training and
    validating, `train_seconds` without validation; `images` are those trained on. `macs` are those
    of each epoch, of a network that shrinks. `since` is the first epoch that can be the best one.
    """

    val_acc: list[float] = field(default_factory=list)
    test_acc: list[float] = field(default_factory=list)
    epoch: list[int] = field(default_factory=list)
    macs: list[int] = field(default_factory=list)
    since: int = 0
    seconds: float = 0.0
    train_seconds: float = 0.0
    images: int = 0

    @property
    def best_epoch(self) -> int | None:
        """Epoch with the best validation accuracy, the first of equals; None before the first."""
        best = self._best
        return None if best is None else self.epoch[best]

    @property
    def best_val_acc(self) -> float | None:
        """Validation accuracy of the best epoch; None before the first."""
        best = self._best
        return None if best is None else self.val_acc[best]

    @property
    def _best(self) -> int | None:
        places = [i for i, epoch in enumerate(self.epoch) if epoch >= self.since]
        return max(places, key=lambda i: self.val_acc[i], default=None)

    @property
    def images_per_second(self) -> float:
        """Throughput of training."""
        return self.images / self.train_seconds if self.train_seconds else 0.0


@dataclass
class Outcome:
    """The best network on the CPU, the figures of every epoch, and what `summary.json` holds."""

    model: nn.Module
    record: Record
    summary: dict[str, Any]


@dataclass(frozen=True)
class Figures:
    """A network's accuracy on the test set (a fraction), parameters, and MACs of one image."""

    acc: float
    params: int
    macs: int

    @classmethod
    def of(cls, model: nn.Module, image_shape: list[int], acc: float) -> "Figures":
        """Those of the network as it is now."""
        return cls(acc, parameter_count(model), macs(model, image_shape))


def of_training(spec: ModelSpec, found: Figures, record: Record, epochs: int) -> dict[str, Any]:
    """What `summary.json` of a training run holds; `epochs` are those it has come to."""
    shrunk = {}
    if spec.born:
        born = {f"{key}_born": spec.born[key] for key in ("params", "macs")}
        shrunk = {**born, "macs_by_epoch": record.macs}
    return {
        "dataset": spec.data["name"],
        "arch": spec.arch_name,
        "method": spec.method,
        "test_acc": found.acc,
        "best_epoch": record.best_epoch,
        "epochs": epochs,
        "params": found.params,
        "macs": found.macs,
        "seconds": record.seconds,
        "images_per_second": record.images_per_second,
        "val_acc": record.best_val_acc,
        **shrunk,
    }


def of_pruning(
    spec: ModelSpec, report: PruningReport, dense: Figures, pruned: Figures
) -> dict[str, Any]:
    """What `summary.json` of a pruning run holds before fine-tuning.

    `spec` describes the network before: ``pruned_before`` says whether that had been pruned too, in
    which case the figures named ``dense`` are of a smaller network than the architecture's. Where
    it shrank while it was trained, they are of what it began with.
    """
    whole = {"params": dense.params, "macs": dense.macs, **spec.born}
    return {
        "dataset": spec.data.get("name"),
        "arch": spec.arch_name if spec.arch else "given",
        "method": spec.method,
        "ratio": report.ratio,
        "scope": report.scope,
        "target": report.target,
        "pruned_before": bool(spec.structure) and not spec.born,
        "acc_dense": dense.acc,
        "acc_pruned": pruned.acc,
        "acc_finetuned": None,
        "params_dense": whole["params"],
        "params_pruned": pruned.params,
        "macs_dense": whole["macs"],
        "macs_pruned": pruned.macs,
        "channels_dense": report.channels_dense,
        "channels_pruned": report.channels_pruned,
        "kept": {name: len(channels) for name, channels in report.kept.items()},
        "widths": report.widths,
        "skipped": report.skipped,
    }


def of_finetuning(test_acc: float, record: Record, epochs: int) -> dict[str, Any]:
    """What fine-tuning adds to `of_pruning`."""
    return {
        "acc_finetuned": test_acc,
        "best_epoch": record.best_epoch,
        "val_acc": record.best_val_acc,
        "epochs": epochs,
        "seconds": record.seconds,
    }


def of_steps(summary: dict[str, Any], model: nn.Module, image_shape: list[int]) -> dict[str, Any]:
    """What changes in `of_pruning` where more channels went step by step."""
    kept = {name: _channels(model.get_submodule(name)) for name in summary["kept"]}
    return {
        "params_pruned": parameter_count(model),
        "macs_pruned": macs(model, image_shape),
        "channels_pruned": sum(kept.values()),
        "kept": kept,
    }


def _channels(layer: nn.Module) -> int:
    return len(layer.weight) if layer.weight.ndim == 1 else len(rows_of(layer))  # type: ignore[arg-type]


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
        ("pruned before" if summary["pruned_before"] else "dense", "acc_dense", "dense"),
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
