"""A LightningModule of somebody's, its data, and a trainer that prints and keeps nothing."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from masking import randomise
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader


class TwoInputs(nn.Module):
    """An image and a vector in, a dictionary of two outputs out."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.aside = nn.Linear(5, 16)
        self.mask, self.label = nn.Conv2d(16, 1, 1), nn.Linear(16, 4)

    def forward(self, image: Tensor, vector: Tensor) -> dict[str, Tensor]:
        x = self.body(self.stem(image))
        return {"mask": self.mask(x), "label": self.label(x.mean((2, 3)) * self.aside(vector))}


def loss_of(network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    made = network(batch["image"], batch["vector"])
    mask = F.binary_cross_entropy_with_logits(made["mask"], batch["mask"])
    return mask + F.cross_entropy(made["label"], batch["label"])


class Mine(pl.LightningModule):
    """Any loss, any inputs."""

    def __init__(self, optimizer: str = "AdamW") -> None:
        super().__init__()
        self.model: nn.Module = randomise(TwoInputs())
        self.optimizer = optimizer
        self.steps: list[float] = []

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = loss_of(self.model, batch)
        self.steps.append(float(loss))
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("val", loss_of(self.model, batch))

    def configure_optimizers(self) -> Any:
        settings = {"momentum": 0.9} if self.optimizer == "SGD" else {}
        optimizer = getattr(torch.optim, self.optimizer)(self.model.parameters(), 0.01, **settings)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


def data(count: int = 8) -> DataLoader:
    torch.manual_seed(7)
    images = [
        {
            "image": torch.randn(3, 8, 8), "vector": torch.randn(5),
            "mask": torch.rand(1, 8, 8).round(), "label": torch.randint(0, 4, ()),
        }
        for _ in range(count)
    ]  # fmt: skip
    return DataLoader(images, batch_size=2)  # type: ignore[arg-type]


def inputs(batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
    return batch["image"], batch["vector"]


def trainer(folder: Path, *callbacks: Any, epochs: int = 3, **settings: Any) -> pl.Trainer:
    return pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=list(callbacks), default_root_dir=folder,
        enable_checkpointing=False, **settings,
    )  # fmt: skip
