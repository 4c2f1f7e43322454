"""The two checkpoints of a run: its best epoch and its last."""

from pathlib import Path
from typing import Any

from pytorch_lightning.callbacks import ModelCheckpoint


class BestCheckpoint(ModelCheckpoint):
    """`best.ckpt`: the epoch with the best validation accuracy, the first of equals."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            folder, "best", monitor="val/acc", mode="max", enable_version_counter=False,
            auto_insert_metric_name=False,
        )  # fmt: skip

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the best epoch so far, also where the run was moved in between."""
        here = str(Path(str(self.dirpath)) / "best.ckpt")
        score = state_dict["best_model_score"]
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


class LastCheckpoint(ModelCheckpoint):
    """`last.ckpt`: every epoch anew, for going on after an interruption."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "last", enable_version_counter=False)
