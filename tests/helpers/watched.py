"""Our commands with every step's loss and every process's pruned network noted.

`python -m torch.distributed.run ... watched.py FOLDER train ... -- prune ...` leaves one file of
notes for each process in FOLDER.
"""

import hashlib
import json
import os
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from conftest import run_command

from rni_pl.norm import norm_kind
from rni_pl.training import finetuning, sparsity, trainer

make_trainer, remove_channels = trainer.make_trainer, finetuning.remove_channels


class Watch(pl.Callback):
    """Notes losses, the classes of norm layers after training, and what pruning leaves."""

    def __init__(self) -> None:
        self.notes: dict[str, Any] = {"losses": [], "kept": None, "network": None}

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
        loss = outputs["loss"].detach().clone()
        self.notes["losses"].append(trainer.strategy.reduce(loss, reduce_op="mean").item())

    def on_train_end(self, trainer: Any, module: Any) -> None:
        self.notes["world_size"] = trainer.world_size
        self.notes["norm"] = norm_kind(module)

    def make_trainer(
        self, config: Any, run_dir: Path, callbacks: list, report: Any = None
    ) -> pl.Trainer:
        return make_trainer(config, run_dir, [*callbacks, self], report)

    def remove_channels(self, *given: Any) -> Any:
        pruned, report = remove_channels(*given)
        self.notes["kept"], self.notes["network"] = report.kept, digest(pruned)
        return pruned, report

    def install(self, patch: Any = setattr) -> None:
        patch(finetuning, "make_trainer", self.make_trainer)
        patch(sparsity, "make_trainer", self.make_trainer)
        patch(finetuning, "remove_channels", self.remove_channels)


def digest(model: Any) -> str:
    """Names, shapes and bytes of all weights and statistics."""
    found = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        found.update(f"{name}{tuple(tensor.shape)}".encode())
        found.update(tensor.cpu().numpy().tobytes())
    return found.hexdigest()


def main(folder: str, *arguments: str) -> None:
    watch = Watch()
    watch.install()
    for separator, words in groupby(arguments, lambda word: word == "--"):
        if not separator and run_command(*words):
            sys.exit(1)
    Path(folder, f"{os.environ['RANK']}.json").write_text(json.dumps(watch.notes))


if __name__ == "__main__":
    main(*sys.argv[1:])
