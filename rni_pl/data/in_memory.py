"""Data sets that live in memory: images as bytes, augmented on the training device."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rni_pl.data.augment import Augment, normalise
from rni_pl.data.base import ClassificationData
from rni_pl.data.batches import EpochLoader, seeded
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

    def check(self, name: str, classes: int) -> None:
        """Raise `DataError` unless this holds images, and labels below `classes`."""
        images, labels = self.images, self.labels
        shape = tuple(images.shape)
        wrong = ""
        if images.dtype != torch.uint8 or len(shape) != 4 or shape[1] != 3:
            wrong = f"images are {images.dtype} of shape {shape}; needed: torch.uint8 (N, 3, H, W)"
        elif labels.dtype != torch.int64 or labels.shape != shape[:1]:
            found = f"{labels.dtype} of shape {tuple(labels.shape)}"
            wrong = f"labels are {found}; needed: torch.int64 ({shape[0]},)"
        elif not len(self):
            wrong = "set holds no images"
        elif len(out := labels[(labels < 0) | (labels >= classes)]):
            wrong = f"set has label {int(out[0])}, which is out of range: {classes} classes"
        if wrong:
            raise DataError(f"the {name} {wrong}")


@dataclass
class Images:
    """A data set: its two splits and the names of its classes, in the order of the labels."""

    train: Split
    test: Split
    classes: list[str]


def channel_statistics(images: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of uint8 images (N, C, H, W), as in [0, 1]."""
    counts = torch.zeros(images.shape[1], 256, dtype=torch.float64)
    for part in images.split(4096):  # a histogram is exact and small
        counts += torch.stack([c.flatten().bincount(minlength=256) for c in part.unbind(1)])
    share = counts / counts.sum(1, keepdim=True)
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = share @ values
    variance = (share * (values - mean[:, None]).square()).sum(1)
    return mean.tolist(), variance.sqrt().clamp_min(1e-6).tolist()


class BatchLoader(EpochLoader):
    """Whole batches ``(images, labels)``: normalised float32 (n, 3, H, W) and int64 (n,).

    The split moves to `device` once, as uint8; augmentation and normalisation happen there. The
    augmentation of a batch depends on (seed, epoch, batch) only. Shuffled where `augment` is
    given.
    """

    def __init__(
        self, split: Split, batch_size: int, mean: Sequence[float], std: Sequence[float],
        augment: Augment | None = None, seed: int = 0, device: torch.device | str = "cpu",
        rank: int = 0, world_size: int = 1,
    ) -> None:  # fmt: skip
        super().__init__(len(split), batch_size, seed, augment is not None, rank, world_size)
        self.split = Split(split.images.to(device), split.labels.to(device))
        self.mean, self.std, self.augment = mean, std, augment

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """See `EpochLoader`."""
        epoch, first = self.sampler.epoch, self.sampler.first
        for number, indices in enumerate(self.sampler.of_all_processes(), first):
            rows = self.sampler.rows(len(indices))
            batch = self.split.take(indices[rows].to(self.split.labels.device))
            if self.augment is not None:
                draws = self.augment.draw(len(indices), seeded(self.seed, epoch, number))
                batch.images = self.augment(batch.images, draws[rows])
            yield normalise(batch.images, self.mean, self.std), batch.labels


class ImageData(ClassificationData):
    """Training, validation and test batches of one data set in memory.

    Args:
        name: what the data set is called in summaries.
        source: ``source(root=...)`` gives the `Images`; `digits`, for one.
        padding, flip: see `Augment`.
        image_size: size that `source` brings the images to, for the record.
        options: see `ClassificationData`; a mean or std of None is measured on the training images.
    """

    def __init__(
        self, name: str, source: Callable[..., Images], padding: int = 4, flip: bool = True,
        image_size: int | None = None, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(name=name, **options)
        self.source = source
        self.augment = Augment(padding, flip)

    def load(self) -> tuple[Split, Split, list[str]]:
        """See `ClassificationData`."""
        images = self.source(root=self.root)
        if not isinstance(images, Images):
            source = getattr(self.source, "func", self.source)
            name = getattr(source, "__qualname__", repr(source))
            raise DataError(f"data.source: {name} returned {type(images).__name__}, not Images")
        images.train.check("training", len(images.classes))
        images.test.check("test", len(images.classes))
        if not (self.mean and self.std):
            mean, std = channel_statistics(images.train.images)
            self.mean, self.std = self.mean or mean, self.std or std
        channels, height, width = images.train.images.shape[1:]
        self.image_shape = channels, height, width
        return images.train, images.test, images.classes

    def loader(
        self, images: Any, batch_size: int, train: bool = False, shared: bool = True
    ) -> BatchLoader:
        """See `ClassificationData`."""
        augment = self.augment if train else None
        given = images, batch_size, self.mean, self.std, augment, self.seed
        if not shared or self.trainer is None:
            return BatchLoader(*given)
        return BatchLoader(*given, self.trainer.strategy.root_device, *self.share())
