"""Pictures of a run for TensorBoard."""

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter

from rni_pl import norm
from rni_pl.callbacks.tensorboard import kept_image
from rni_pl.pruning import PruningReport

LAYER_BINS, ALL_BINS = 30, 100


class Monitor(pl.Callback):
    """Shows importances, the sizes of the effective scales, and the channels that pruning keeps.

    Writes, after every epoch, the histograms ``importance/all`` and ``importance/LAYER`` (the step
    is the epoch); where the model was pruned, the image ``kept channels``. All of it by the first
    process only, and nothing within an epoch.

    Args:
        report: what was removed from the network before; None: nothing, or it was shown before.
    """

    def __init__(self, report: PruningReport | None = None) -> None:
        self.report = report

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show what was pruned."""
        if self.report is not None:
            kept = {name: len(channels) for name, channels in self.report.kept.items()}
            picture = kept_image(kept, self.report.widths)
            for writer in _writers(trainer):
                writer.add_image("kept channels", picture, 0, dataformats="HWC")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the importances."""
        for writer in _writers(trainer):
            sizes = norm.scale_sizes(pl_module)
            epoch = trainer.current_epoch
            _add_histogram(writer, "all", torch.cat(list(sizes.values())), epoch, ALL_BINS)
            for name, values in sizes.items():
                _add_histogram(writer, name.removeprefix("model."), values, epoch, LAYER_BINS)


def _writers(trainer: pl.Trainer) -> list[SummaryWriter]:
    if not trainer.is_global_zero:
        return []
    return [board.experiment for board in trainer.loggers if isinstance(board, TensorBoardLogger)]


def _add_histogram(
    writer: SummaryWriter, name: str, values: torch.Tensor, epoch: int, bins: int
) -> None:
    values = values[values.isfinite()]  # StopOnDivergence will say why any are not
    if len(values):
        writer.add_histogram(f"importance/{name}", values, epoch, bins)
