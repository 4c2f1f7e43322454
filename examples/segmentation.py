"""A U-Net on a segmentation task, trained, pruned and fine-tuned in a LightningModule of one's own.

    python examples/segmentation.py [--epochs 8] [--images 1000] [--seed 0] [--picture unet.png]

Prints the intersection over union before and after.
"""

import argparse
import copy
import warnings
from typing import Any

import pytorch_lightning as pl
import torch
from canvases import canvases
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from rni_pl import convert_batchnorm
from rni_pl.callbacks import OneShotPruning, SparsityRegulariser
from rni_pl.regularisers import RNI


def block(inputs: int, outputs: int) -> nn.Sequential:
    """Two convolutions."""
    layers: list[nn.Module] = []
    for width in (inputs, outputs):
        layers += [nn.Conv2d(width, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)]
        layers.append(nn.ReLU())
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Three levels; what goes up is joined with what went down (Ronneberger et al. 2015)."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width]
        self.down = nn.ModuleList(map(block, [3, *widths[:-1]], widths))
        self.up = nn.ModuleList(block(3 * n, n) for n in reversed(widths[:-1]))
        self.head = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 1, H, W) of images (N, 3, H, W)."""
        passed = []
        for level, down in enumerate(self.down):
            x = down(F.max_pool2d(x, 2) if level else x)
            passed.append(x)
        for up, across in zip(self.up, reversed(passed[:-1]), strict=True):
            x = up(torch.cat([F.interpolate(x, scale_factor=2.0), across], 1))
        return self.head(x)


class Segmenter(pl.LightningModule):
    """Nothing here knows of pruning."""

    def __init__(self, model: nn.Module, lr: float) -> None:
        super().__init__()
        self.model, self.lr = model, lr

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy of each pixel."""
        images, masks = batch
        return F.binary_cross_entropy_with_logits(self.model(images), masks.float())

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Intersection over union."""
        images, masks = batch
        found = self.model(images) > 0
        self.log("iou", (found & masks).sum() / (found | masks).sum())

    def configure_optimizers(self) -> Any:
        """AdamW, whose rate falls to 0."""
        optimizer = torch.optim.AdamW(self.model.parameters(), self.lr)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def main() -> None:
    """Train, prune, fine-tune."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    pl.seed_everything(given.seed, verbose=False)

    def loader(count: int, train: bool) -> DataLoader:
        made = canvases(count, seed=given.seed, train=train)
        return DataLoader(TensorDataset(made.images, made.masks), batch_size=16, shuffle=train)

    train, test = loader(given.images, True), loader(max(given.images // 4, 16), False)

    def fit(module: Segmenter, *callbacks: pl.Callback) -> float:
        trainer = pl.Trainer(
            max_epochs=given.epochs, accelerator="cpu", logger=False, callbacks=list(callbacks),
            enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False,
        )  # fmt: skip
        trainer.fit(module, train)
        return trainer.test(module, test, verbose=False)[0]["iou"]

    dense = Segmenter(convert_batchnorm(UNet()), lr=0.005)
    before = fit(dense, SparsityRegulariser(RNI(reg_weight=1e-4)))
    pruned = Segmenter(copy.deepcopy(dense.model), lr=0.005)
    pruning = OneShotPruning(given.ratio)
    after = fit(pruned, pruning)
    assert pruning.report is not None
    print(pruning.report)
    print(f"IoU {before:.4f} dense, {after:.4f} pruned and fine-tuned")
    if given.picture:
        draw(given.picture, test, dense.model, pruned.model)


def draw(file: str, test: DataLoader, *models: nn.Module) -> None:
    """Images, masks, and what the networks make of them, one below the other."""
    from torchvision.utils import save_image

    images, masks = next(iter(test))
    with torch.no_grad():
        found = [(model.eval()(images) > 0).float() for model in models]
    rows = [images, *(each.expand(-1, 3, -1, -1) for each in (masks.float(), *found))]
    save_image(torch.cat([row[:8] for row in rows]), file, nrow=8)


if __name__ == "__main__":
    main()
