"""What a run shows in TensorBoard beside its curves: a picture of the pruning, a row in HParams."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from omegaconf import DictConfig
from PIL import Image, ImageDraw, ImageFont
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from rni_pl.config import plain

# The columns of the HParams tab, with a value of their type. TensorBoard takes them from whichever
# run it reads first, so every run, of training or pruning, states all of them.
PARAMETERS = {
    "dataset": "", "arch": "", "method": "", "reg_weight": 0.0, "shift": 0.0, "ratio": 0.0,
    "scope": "", "target": "", "seed": 0, "lr": 0.0, "weight_decay": 0.0, "batch_size": 0,
    "epochs": 0,
}  # fmt: skip
METRICS = ("acc_dense", "acc_pruned", "acc_finetuned", "params", "macs")

ROW, BAR = 16, 360  # pixels: height of a layer's row, length of the widest layer's bar
KEPT, REMOVED, INK = (47, 111, 176), (224, 228, 233), (40, 44, 52)


def hyperparameters(config: DictConfig, summary: Mapping[str, Any]) -> dict[str, Any]:
    """What a run was asked for, flat: `PARAMETERS` as far as they apply, and the method's own.

    Where pruning cut at a valley (``ratio=auto``), `ratio` is the share that this removed.
    """
    method = plain(config.method) if "method" in config else {}
    values = {key: value for key, value in method.items() if key != "_target_"}
    values.update({key: summary[key] for key in PARAMETERS if key in summary})
    if values.get("ratio") == "auto":
        target = summary["target"]
        values["ratio"] = 1 - summary[f"{target}_pruned"] / summary[f"{target}_dense"]
    return {
        **values,
        "lr": config.optimizer.lr,
        "weight_decay": config.optimizer.weight_decay,
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
    writer: SummaryWriter, parameters: dict[str, Any], metrics: dict[str, float]
) -> None:
    """Write a run's row of the HParams tab, with its metrics as scalars below ``final/``."""
    tags = {f"final/{key}": value for key, value in metrics.items()}
    columns, _, _ = hparams({**PARAMETERS, **parameters}, {f"final/{key}": 0 for key in METRICS})
    _, begin, end = hparams(parameters, tags)
    for tag, value in tags.items():
        writer.add_scalar(tag, value)
    for summary in (columns, begin, end):
        writer._get_file_writer().add_summary(summary)
    writer.flush()


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
