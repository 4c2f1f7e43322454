"""The two checkpoints of a run, its best epoch and its last, and how they are written."""

import io
import math
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.utilities import rank_zero_warn

from rni_pl.errors import CheckpointError, ConfigError, StorageError
from rni_pl.runs import checkpoint
from rni_pl.runs.files import write_whole


class BestCheckpoint(ModelCheckpoint):
    """`best.ckpt`: the epoch with the best validation accuracy, the first of equals."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            folder, "best", monitor="val/acc", mode="max", enable_version_counter=False,
            auto_insert_metric_name=False,
        )  # fmt: skip

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse to train for fewer steps than come before the first validation."""
        super().on_train_start(trainer, pl_module)
        if trainer.max_steps > 0 and isinstance(trainer.val_check_batch, int):
            _check_steps(trainer, trainer.val_check_batch)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the best epoch so far, also where the run was moved in between.

        Raises:
            CheckpointError: its weights are lost, so that the run could not end as it should.
        """
        if not state_dict["best_model_path"]:
            return  # nothing was validated yet
        file = Path(str(self.dirpath)) / "best.ckpt"
        if not file.is_file():
            raise CheckpointError(
                f"resume={file.parent.parent}: {file.name} is missing, the best epoch so far, so "
                "that the run could not end as it should; start a new run"
            )
        checkpoint.read_plain(file, "resume")
        here, score = str(file), state_dict["best_model_score"]
        super().load_state_dict(
            {
                **state_dict,
                "dirpath": self.dirpath,
                "best_model_path": here,
                "kth_best_model_path": here,
                "best_k_models": {here: score},
                "last_model_path": "",
            }
        )


def _check_steps(trainer: pl.Trainer, every: int) -> None:
    """See that `trainer.max_steps` fits a validation after `every` batches.

    Raises:
        ConfigError: there would be none.
    """
    epochs, accumulate = trainer.check_val_every_n_epoch, trainer.accumulate_grad_batches
    in_epoch = math.ceil(trainer.num_training_batches / accumulate)
    first = ((epochs or 1) - 1) * in_epoch + math.ceil(every / accumulate)
    if trainer.max_steps < first:
        raise ConfigError(
            f"trainer.max_steps={trainer.max_steps} is not allowed: the first validation comes "
            f"after {first} steps, so there would be no best epoch"
        )
    if every != trainer.num_training_batches or epochs is None:
        return  # validates within epochs, too
    after = trainer.max_steps % (epochs * in_epoch)
    if after and trainer.max_steps == trainer.estimated_stepping_batches:
        rank_zero_warn(
            f"trainer.max_steps={trainer.max_steps} ends {after} steps after a validation: what "
            "they learn is only in last.ckpt"
        )


class LastCheckpoint(ModelCheckpoint):
    """`last.ckpt`: every epoch anew, for going on after an interruption."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "last", enable_version_counter=False, save_on_train_epoch_end=True)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to go on with: the file is always written anew."""

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Have on the disk what was logged so far: a run that goes on logs what follows."""
        for logger in trainer.loggers:
            logger.save()


class WholeCheckpoints(TorchCheckpointIO):
    """Lightning's checkpoints, written whole or not at all and read as plain data only.

    Lightning's own go through the system's temporary folder, which may be another file system, so
    that a kill can leave half a file; and they may be lost with the power.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write to a file beside `path`, then rename. Raises `StorageError`."""
        buffer = io.BytesIO()  # on a full disk torch.save to a file would end the process
        torch.save(checkpoint, buffer)
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{path} cannot be written: {error.strerror or error}") from error
        write_whole(Path(path), buffer.getbuffer())

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read on the CPU, whatever `weights_only` says. Raises `CheckpointError`."""
        return checkpoint.read_plain(Path(path))
