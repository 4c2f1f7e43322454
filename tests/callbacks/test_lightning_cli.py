"""The callbacks in a YAML file of LightningCLI, of both packages of Lightning."""

from pathlib import Path

import pytest
from conftest import run_python

CONFIGURED = """
trainer:
  max_epochs: 2
  accelerator: cpu
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: rni_pl.callbacks.SparsityRegulariser
      init_args:
        regulariser: {class_path: rni_pl.regularisers.L1, init_args: {reg_weight: 0.001}}
    - class_path: rni_pl.callbacks.OneShotPruning
      init_args: {ratio: 0.5, at_epoch: 1, options: {ignore: [features.9]}}
"""
BY_COMMAND = """
import torch
from PACKAGE import LightningModule
from PACKAGE.cli import LightningCLI
from torch import nn
from torch.utils.data import DataLoader


class Mine(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3))
        nn.init.normal_(self.features[1].weight)

    def training_step(self, batch, batch_idx):
        return self.features(batch).square().mean()

    def forward(self, x):
        return self.features(x)

    def train_dataloader(self):
        return DataLoader(torch.randn(8, 3, 8, 8), batch_size=2)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())


cli = LightningCLI(Mine, run=False, args=["--config", "run.yaml"], save_config_callback=None)
try:
    cli.trainer.fit(cli.model)
except ValueError as error:
    print("refused:", error)
cli.trainer.fit_loop.epoch_progress.reset()
for callback in cli.trainer.callbacks:
    if hasattr(callback, "options"):
        callback.options.clear()
cli.trainer.fit(cli.model)
print("left:", cli.model.features[0].out_channels)
"""


@pytest.mark.parametrize("package", ["pytorch_lightning", "lightning.pytorch"])
def test_lightnings_own_command_line(package: str, tmp_path: Path) -> None:
    pytest.importorskip(package)
    (tmp_path / "run.yaml").write_text(CONFIGURED)
    done = run_python("-c", BY_COMMAND.replace("PACKAGE", package), cwd=tmp_path)
    assert done.status == 0, done.err
    assert "refused: prune.ignore='features.9' matches no layer" in done.out
    assert "left: 4" in done.out
