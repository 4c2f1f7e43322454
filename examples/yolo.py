"""Ultralytics YOLO: trained with a penalty, pruned, fine-tuned and saved, in its own trainer.

    pip install ultralytics        # AGPL-3.0
    python examples/yolo.py [--epochs 30] [--images 600] [--seed 0] [--folder runs/yolo]

Prints mAP50 before and after, and leaves ``pruned.pt``, which ``YOLO("pruned.pt")`` loads.
"""

import argparse
import copy
from pathlib import Path
from typing import Any

import torch
import yaml
from canvases import canvases
from torchvision.utils import save_image
from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn.modules import C2f

from rni_pl import prune
from rni_pl.callbacks.sparsity import add_gradient
from rni_pl.regularisers import L1

SIZE = 128  # pixels


def write_images(folder: Path, count: int, seed: int) -> Path:
    """Canvases as files, in the layout that Ultralytics reads; the file that describes them."""
    for part, many in (("train", count), ("val", count // 4)):
        made = canvases(many, SIZE, seed, part == "train")
        (folder / "images" / part).mkdir(parents=True, exist_ok=True)
        (folder / "labels" / part).mkdir(parents=True, exist_ok=True)
        for i, (image, boxes, labels) in enumerate(
            zip(made.images, made.boxes, made.labels, strict=True)
        ):
            save_image(image, folder / "images" / part / f"{i}.png")
            left, top, right, bottom = (boxes / SIZE).unbind(1)
            centre = torch.stack([(left + right) / 2, (top + bottom) / 2], 1)
            sides = torch.stack([right - left, bottom - top], 1)
            rows = torch.cat([labels[:, None].float(), centre, sides], 1).tolist()
            text = "\n".join(" ".join(f"{value:.6g}" for value in row) for row in rows)
            (folder / "labels" / part / f"{i}.txt").write_text(text)
    names = {number: str(number) for number in range(10)}
    data = {"path": str(folder.resolve()), "train": "images/train", "val": "images/val"}
    (folder / "data.yaml").write_text(yaml.safe_dump({**data, "names": names}))
    return folder / "data.yaml"


def penalise(weight: float) -> Any:
    """A callback that has every step of the optimiser pull at the BatchNorm scales.

    None of Ultralytics' callbacks runs between backward and step; an optimiser's own hook does.
    """

    def on_train_start(trainer: Any) -> None:
        trainer.optimizer.register_step_pre_hook(lambda *_: add_gradient(trainer.model, L1(weight)))

    return on_train_start


def trainer_of(model: torch.nn.Module) -> type[DetectionTrainer]:
    """A trainer of this very network: Ultralytics' own builds another from its YAML file."""

    class OfThisNetwork(DetectionTrainer):
        def get_model(self, *_: Any, **__: Any) -> torch.nn.Module:
            return model

    return OfThisNetwork


def main() -> None:
    """Train, prune, fine-tune, save, load."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("runs/yolo"))
    given = parser.parse_args()
    folder = given.folder.resolve()
    settings = {
        "data": str(write_images(folder / "data", given.images, given.seed)), "imgsz": SIZE,
        "epochs": given.epochs, "batch": 16, "device": "cpu", "workers": 0, "amp": False,
        "seed": given.seed, "project": str(folder), "exist_ok": True, "plots": False,
        "verbose": False, "fliplr": 0.0, "mosaic": 0.0, "lr0": 0.002, "optimizer": "AdamW",
    }  # fmt: skip

    dense = YOLO("yolov8n.yaml")
    dense.add_callback("on_train_start", penalise(1e-4))
    dense.train(**settings, name="dense")
    dense = YOLO(folder / "dense/weights/best.pt")
    before = dense.val(data=settings["data"], imgsz=SIZE, device="cpu", plots=False).box.map50

    network = copy.deepcopy(dense.model).float().eval()
    pruned, report = prune(network, torch.zeros(1, 3, SIZE, SIZE), given.ratio, coupled=True)
    print(report)
    for parameter in pruned.parameters():
        parameter.requires_grad_(True)
    for module in pruned.modules():
        if isinstance(module, C2f):  # exports split by this number, where training halves
            module.c = module.cv1.conv.out_channels // 2
    small = YOLO("yolov8n.yaml")
    small.train(trainer=trainer_of(pruned), **settings, name="pruned")

    loaded = YOLO(folder / "pruned/weights/best.pt")
    loaded.save(folder / "pruned.pt")
    again = YOLO(folder / "pruned.pt")
    after = again.val(data=settings["data"], imgsz=SIZE, device="cpu", plots=False).box.map50
    (first,) = again.predict(next((folder / "data/images/val").glob("*.png")), imgsz=SIZE)
    again.export(format="torchscript", imgsz=SIZE)
    print(f"{len(first.boxes)} digits in one picture; saved as {folder / 'pruned.pt'}")
    print(f"mAP50 {before:.4f} dense, {after:.4f} pruned and fine-tuned")


if __name__ == "__main__":
    main()
