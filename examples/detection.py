"""A torchvision detector (FCOS, Tian et al. 2019), trained, pruned and fine-tuned in Lightning.

    python examples/detection.py [--epochs 12] [--images 1000] [--seed 0] [--picture boxes.png]

Prints the mean average precision at an overlap of 0.5 before and after.
"""

import argparse
import copy
import warnings
from typing import Any

import pytorch_lightning as pl
import torch
from canvases import canvases
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import box_iou

from rni_pl import convert_batchnorm
from rni_pl.callbacks import OneShotPruning, SparsityRegulariser
from rni_pl.regularisers import RNI

Target = dict[str, Tensor]  # boxes, labels, and of what was found the scores


class Backbone(nn.Sequential):
    """Convolutions with BatchNorm, down to a quarter of the size."""

    out_channels = 64

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        widths = ((3, 32, 1), (32, 32, 2), (32, 64, 1), (64, 64, 2), (64, 64, 1), (64, 64, 1))
        for inputs, outputs, stride in widths:
            conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(outputs), nn.ReLU()]
        super().__init__(*layers)


def detector(size: int = 64) -> FCOS:
    """FCOS for ten digits on canvases of this size."""
    return FCOS(
        convert_batchnorm(Backbone()), num_classes=10, min_size=size, max_size=size,
        anchor_generator=AnchorGenerator(((16,),), ((1.0,),)), score_thresh=0.05,
    )  # fmt: skip


class Detector(pl.LightningModule):
    """Nothing here knows of pruning."""

    def __init__(self, model: nn.Module, lr: float) -> None:
        super().__init__()
        self.model, self.lr = model, lr
        self.found: list[tuple[Target, Target]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The sum of the detector's own losses."""
        return torch.stack(list(self.model(*batch).values())).sum()

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Keep what was found."""
        images, targets = batch
        self.found += zip(self.model(images), targets, strict=True)

    def on_test_epoch_end(self) -> None:
        """Mean average precision."""
        self.log("map50", map50(self.found))
        self.found.clear()

    def configure_optimizers(self) -> Any:
        """AdamW, whose rate falls to 0."""
        optimizer = torch.optim.AdamW(self.model.parameters(), self.lr)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def map50(found: list[tuple[Target, Target]], classes: int = 10) -> float:
    """Mean over classes of the area under precision against recall, at an overlap of 0.5."""
    means = []
    for label in range(classes):
        hits: list[tuple[float, bool]] = []
        total = 0
        for made, wanted in found:
            boxes = wanted["boxes"][wanted["labels"] == label]
            total += len(boxes)
            free = [True] * len(boxes)
            mine = made["labels"] == label
            overlaps = box_iou(made["boxes"][mine], boxes)
            for place in made["scores"][mine].argsort(descending=True).tolist():
                best = int(overlaps[place].argmax()) if len(boxes) else -1
                hit = best >= 0 and free[best] and float(overlaps[place, best]) >= 0.5
                if hit:
                    free[best] = False
                hits.append((float(made["scores"][mine][place]), hit))
        right = torch.tensor([hit for _, hit in sorted(hits, reverse=True)]).cumsum(0)
        precision = right / torch.arange(1, len(right) + 1)
        best_from_here = precision.flip(0).cummax(0).values.flip(0)
        steps = torch.diff(right, prepend=torch.zeros(1, dtype=right.dtype))
        means.append(float((best_from_here * steps).sum()) / max(total, 1))
    return sum(means) / classes


def together(batch: list[tuple[Tensor, Target]]) -> tuple[list[Tensor], list[Target]]:
    """A list of images and a list of targets, as the detector takes them."""
    return [image for image, _ in batch], [target for _, target in batch]


def main() -> None:
    """Train, prune, fine-tune."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    pl.seed_everything(given.seed, verbose=False)

    def loader(count: int, train: bool) -> DataLoader:
        made = canvases(count, seed=given.seed, train=train)
        targets = [
            {"boxes": boxes, "labels": labels}
            for boxes, labels in zip(made.boxes, made.labels, strict=True)
        ]
        pairs = [pair for pair in zip(made.images, targets, strict=True) if len(pair[1]["boxes"])]
        return DataLoader(pairs, 16, shuffle=train, collate_fn=together)  # type: ignore[arg-type]

    train, test = loader(given.images, True), loader(max(given.images // 4, 16), False)

    def fit(module: Detector, *callbacks: pl.Callback) -> float:
        trainer = pl.Trainer(
            max_epochs=given.epochs, accelerator="cpu", logger=False, callbacks=list(callbacks),
            enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False,
        )  # fmt: skip
        trainer.fit(module, train)
        return trainer.test(module, test, verbose=False)[0]["map50"]

    dense = Detector(detector(), lr=0.004)
    before = fit(dense, SparsityRegulariser(RNI(reg_weight=1e-4)))
    pruned = Detector(copy.deepcopy(dense.model), lr=0.004)
    pruning = OneShotPruning(given.ratio)
    after = fit(pruned, pruning)
    print(pruning.report)
    print(f"mAP50 {before:.4f} dense, {after:.4f} pruned and fine-tuned")
    if given.picture:
        draw(given.picture, test, dense.model, pruned.model)


def draw(file: str, test: DataLoader, *models: nn.Module) -> None:
    """What the networks find, one below the other."""
    from torchvision.utils import draw_bounding_boxes, save_image

    images, rows = next(iter(test))[0][:8], []
    for model in models:
        with torch.no_grad():
            for image, found in zip(images, model.eval()(images), strict=True):
                sure = found["scores"] > 0.5
                names = [str(int(label)) for label in found["labels"][sure]]
                picture = (255 * image).byte()
                rows.append(draw_bounding_boxes(picture, found["boxes"][sure], names) / 255)
    save_image(torch.stack(rows), file, nrow=8)


if __name__ == "__main__":
    main()
