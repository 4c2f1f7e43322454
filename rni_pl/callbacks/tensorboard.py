"""What a run shows in TensorBoard beside its curves: a picture of the pruning, a row in HParams."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from omegaconf import DictConfig
from PIL import Image, ImageDraw, ImageFont
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from rni_pl.config import plain

PARAMETERS = ("dataset", "arch", "method", "ratio", "scope", "target", "seed")
METRICS = ("acc_dense", "acc_pruned", "acc_finetuned", "params", "macs")

ROW, BAR = 16, 220  # pixels: height of a layer's row, length of the widest layer's bar
KEPT, REMOVED, INK = (47, 111, 176), (224, 228, 233), (40, 44, 52)


def hyperparameters(config: DictConfig, summary: Mapping[str, Any]) -> dict[str, Any]:
    """What a run was asked for, flat: `PARAMETERS` where they apply, and settings of its method.

    Where pruning cut at a valley (``ratio=auto``), `ratio` is the share that this removed.
    """
    method = plain(config.method) if "method" in config else {}
    values = {key: value for key, value in method.items() if isinstance(value, int | float | str)}
    values.pop("_target_", None)
    values.update({key: summary[key] for key in PARAMETERS if key in summary})
    if isinstance(values.get("ratio"), str):
        target = summary["target"]
        values["ratio"] = 1 - summary[f"{target}_pruned"] / summary[f"{target}_dense"]
    return {
        **values,
        "lr": config.optimizer.lr,
        "weight_decay": config.optimizer.get("weight_decay", 0.0),
        "batch_size": config.data.batch_size,
        "epochs": config.trainer.max_epochs,
    }


def final_metrics(summary: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a summary that a table of runs compares; sizes are those of the result."""
    named = {
        "acc_dense": summary.get("test_acc"),
        "params": summary.get("params_pruned"),
        "macs": summary.get("macs_pruned"),
    }
    found = {key: summary.get(key, named.get(key)) for key in METRICS}
    return {key: value for key, value in found.items() if value is not None}


def add_hyperparameters(
    writer: SummaryWriter, parameters: dict[str, Any], metrics: dict[str, float], step: int
) -> None:
    """Write a run's row of the HParams tab, with its metrics as scalars below ``summary/``.

    TensorBoard makes the columns from all runs, those that differ first, as long as no run
    announces any (as `SummaryWriter.add_hparams` would: the first one's would count for all). It
    shows the first five metrics in the order of the alphabet, which these are by their name.
    """
    tags = {f"summary/{key}": value for key, value in metrics.items()}
    _, begin, end = hparams(parameters, tags)
    for tag, value in tags.items():
        writer.add_scalar(tag, value, step)  # where a run went on, the last counts
    for summary in (begin, end):
        writer._get_file_writer().add_summary(summary)
    writer.flush()


def sensitivity_image(curves: Mapping[str, list[tuple[float, float]]], whole: float) -> np.ndarray:
    """Layers by shares: the darker, the more accuracy is lost where that share is removed.

    Args:
        curves: layer -> pairs of a share and the accuracy without it.
        whole: the accuracy of the whole network.

    Returns:
        An RGB picture, uint8 of shape (H, W, 3).
    """
    font = ImageFont.load_default(12)
    left, cell = 12 + max(round(font.getlength(name)) for name in curves), 44
    longest = max(curves.values(), key=lambda curve: len(curve))
    picture = Image.new("RGB", (left + cell * len(longest), ROW * (len(curves) + 1)), "white")
    draw = ImageDraw.Draw(picture)
    for column, (share, _) in enumerate(longest):
        place = left + cell * column + cell // 2, ROW // 2
        draw.text(place, f"{share:.0%}", INK, font, anchor="mm")
    for row, (name, curve) in enumerate(curves.items(), 1):
        draw.text((left - 6, ROW * row + ROW // 2), name, INK, font, anchor="rm")
        for column, (_, accuracy) in enumerate(curve):
            lost = min(max((whole - accuracy) / whole, 0.0), 1.0) if whole else 0.0
            x, y = left + cell * column, ROW * row
            shade = tuple(round(255 + lost * (dark - 255)) for dark in KEPT)
            draw.rectangle((x + 1, y + 1, x + cell - 2, y + ROW - 2), shade)
            ink = "white" if lost > 0.6 else INK
            draw.text((x + cell // 2, y + ROW // 2), f"{accuracy:.0%}", ink, font, anchor="mm")
    return np.asarray(picture)


def kept_image(kept: Mapping[str, int], widths: Mapping[str, int]) -> np.ndarray:
    """One bar a layer: its channels, and how many of them are kept.

    Args:
        kept: norm layer -> number of channels kept, in forward order.
        widths: the same layers -> number of channels before.

    Returns:
        An RGB picture, uint8 of shape (H, W, 3).
    """
    font = ImageFont.load_default(12)
    counts = {name: f"{count} of {widths[name]}" for name, count in kept.items()}
    left = 12 + max(round(font.getlength(name)) for name in kept)
    right = 12 + max(round(font.getlength(text)) for text in counts.values())
    picture = Image.new("RGB", (left + BAR + right, ROW * len(kept)), "white")
    draw = ImageDraw.Draw(picture)
    widest = max(widths.values())
    for row, (name, count) in enumerate(kept.items()):
        top, middle = ROW * row + 2, ROW * row + ROW // 2
        whole = left + BAR * widths[name] / widest
        draw.text((left - 6, middle), name, INK, font, anchor="rm")
        draw.rectangle((left, top, whole, top + ROW - 5), REMOVED)
        draw.rectangle((left, top, left + BAR * count / widest, top + ROW - 5), KEPT)
        draw.text((whole + 6, middle), counts[name], INK, font, anchor="lm")
    return np.asarray(picture)
