"""Does speed cost accuracy? The reference loop and our pipeline on the same schedule and images.

    python benchmarks/accuracy.py CIFAR10_FOLDER [--per-class 1000] [--epochs 10] [--seeds 3]

`CIFAR10_FOLDER` is in image-folder layout (train/CLASS/*, test/CLASS/*). ResNet-20 with RNI is
trained on the first images of each class, by `reference.py` in float32 and by `rni_pl.train` with
its defaults; the accuracy of the last epoch on the whole test set is printed for each seed.
"""

import argparse
import statistics
import tempfile
import warnings
from pathlib import Path

import torch
from reference import BATCH, MEAN, STD, PerImage, steps
from torch.optim.lr_scheduler import MultiStepLR
from torch.utils.data import DataLoader

import rni_pl
from rni_pl import models
from rni_pl.data import Images, image_folder
from rni_pl.regularisers import RNI


def subset(folder: Path, per_class: int, into: Path) -> Path:
    """Links to the first `per_class` training images of each class, and to all test images."""
    (into / "test").symlink_to((folder / "test").resolve())
    for name in sorted(entry.name for entry in (folder / "train").iterdir()):
        (into / "train" / name).mkdir(parents=True)
        for file in sorted((folder / "train" / name).iterdir())[:per_class]:
            (into / "train" / name / file.name).symlink_to(file.resolve())
    return into


def reference(images: Images, epochs: int, seed: int) -> float:
    """Test accuracy of the reference recipe."""
    torch.manual_seed(seed)
    model = models.resnet20(norm="sigbn")
    per_epoch = -(-len(images.train) // BATCH)
    schedule = None
    trained = steps(model, RNI(1e-4), images.train.images, images.train.labels)
    for _ in range(epochs * per_epoch):
        optimizer = next(trained)
        if schedule is None:
            drops = [round(share * epochs * per_epoch) for share in (0.5, 0.75)]
            schedule = MultiStepLR(optimizer, drops, 0.1)
        schedule.step()
    model.eval()
    test = PerImage(images.test.images, images.test.labels, augment=False)
    with torch.no_grad():
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in DataLoader(test, 500))
    return right / len(test)


def ours(folder: Path, epochs: int, seed: int) -> float:
    """Test accuracy of our pipeline, of the last epoch too."""
    overrides = [f"data.root={folder}", f"data.mean={list(MEAN)}", f"data.std={list(STD)}"]
    overrides += ["protocol=paper", "trainer.enable_model_summary=false"]
    _, logs = rni_pl.train(
        "image_folder", "resnet20", "rni", epochs=epochs, seed=seed, overrides=overrides
    )
    return logs["test_acc"][-1]


def main() -> None:
    """Print one line for each seed, and the means."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--per-class", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    found: list[tuple[float, float]] = []
    print("| seed | reference | ours |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        folder = subset(given.folder, given.per_class, Path(temporary))
        images = image_folder(str(folder))
        for seed in range(given.seeds):
            found.append((reference(images, given.epochs, seed), ours(folder, given.epochs, seed)))
            print(f"| {seed} | {found[-1][0]:.2%} | {found[-1][1]:.2%} |", flush=True)
    means = [statistics.mean(column) for column in zip(*found, strict=True)]
    print(f"| mean | {means[0]:.2%} | {means[1]:.2%} |")


if __name__ == "__main__":
    main()
