"""Images in memory: what every data set is turned into."""

from dataclasses import dataclass

import torch
from torch import Tensor

from rni_pl.errors import DataError


@dataclass
class Split:
    """uint8 images of shape (N, 3, H, W) and their int64 labels of shape (N,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> "Split":
        """The images at `indices`."""
        return Split(self.images[indices], self.labels[indices])


@dataclass
class Images:
    """A data set: its two splits and the names of its classes, in the order of the labels."""

    train: Split
    test: Split
    classes: list[str]

    def check(self) -> None:
        """Raise `DataError` unless each split holds images and labels that name classes."""
        check_classes(self.classes)
        for name, split in (("training", self.train), ("test", self.test)):
            shape = tuple(split.images.shape)
            if split.images.dtype != torch.uint8 or len(shape) != 4 or shape[1] != 3:
                raise DataError(
                    f"the {name} images are {split.images.dtype} of shape {shape}; needed: "
                    "torch.uint8 of shape (N, 3, H, W)"
                )
            if split.labels.dtype != torch.int64 or split.labels.shape != shape[:1]:
                raise DataError(
                    f"the {name} labels are {split.labels.dtype} of shape "
                    f"{tuple(split.labels.shape)}; needed: torch.int64 of shape ({shape[0]},)"
                )
            if not len(split):
                raise DataError(f"the {name} set holds no images")
            low, high = int(split.labels.min()), int(split.labels.max())
            if low < 0 or high >= len(self.classes):
                wrong = low if low < 0 else high
                raise DataError(
                    f"label {wrong} in the {name} set is out of range: {len(self.classes)} classes"
                )


def check_classes(classes: list[str]) -> None:
    """Raise `DataError` unless there is something to tell apart."""
    if len(classes) < 2:
        raise DataError(f"there is one class alone ({', '.join(classes)}); needed: at least 2")


def check_enough(count: int, processes: int = 1) -> None:
    """Raise `DataError` unless every process can train on a batch of two: BatchNorm needs them."""
    if count < 2 * processes:
        raise DataError(
            f"{count} training images are too few; needed: at least {2 * processes}"
            + (f" for {processes} processes" if processes > 1 else "")
        )


def channel_statistics(split: Split) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, of pixels in [0, 1]."""
    values = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in range(split.images.shape[1]):
        counts = torch.zeros(256, dtype=torch.float64)
        for part in split.images[:, channel].split(4096):  # a histogram is exact and small
            counts += torch.bincount(part.reshape(-1).int(), minlength=256)
        share = counts / counts.sum()
        mean = float((share * values).sum())
        means.append(mean)
        stds.append(max(float((share * (values - mean) ** 2).sum()) ** 0.5, 1e-6))
    return means, stds


def split_indices(count: int, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Set `fraction` of `count` images aside, drawn with `seed`: indices of the rest, and of those.

    Raises:
        DataError: one of the two would be empty.
    """
    aside = round(fraction * count)
    if not 0 < aside < count:
        raise DataError(
            f"data.val_fraction={fraction} of {count} training images leaves nothing to "
            + ("validate on" if aside == 0 else "train on")
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[aside:].sort().values, order[:aside].sort().values


def train_val_split(split: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    """Set `fraction` of the images aside, see `split_indices`: the rest, and those."""
    kept, aside = split_indices(len(split), fraction, seed)
    return split.take(kept), split.take(aside)
