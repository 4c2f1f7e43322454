"""The data module over images in memory."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from rni_pl.data.augment import Augment
from rni_pl.data.base import ClassificationData
from rni_pl.data.images import (
    Images,
    channel_statistics,
    check_enough,
    train_val_split,
)
from rni_pl.data.loader import BatchLoader
from rni_pl.errors import DataError


class ImageData(ClassificationData):
    """Training, validation and test batches of one data set.

    Args:
        name: what the data set is called in summaries.
        source: ``source(root=...)`` gives the images, see `rni_pl.data.sources`.
        root: folder of the data set's files.
        batch_size: images a step, over all devices.
        eval_batch_size: images a batch in validation and test, over all devices.
        val_fraction: share of the training images that validates; 0: the test set does.
        padding, flip: see `Augment`.
        mean, std: of each channel, pixels in [0, 1]; None: measured on the training images.
        seed: of order and augmentation.
        split_seed: of the validation split; None: `seed`.
        image_size: size that `source` brings the images to, for the record.
    """

    def __init__(
        self,
        name: str,
        source: Callable[..., Images],
        root: str = "data",
        batch_size: int = 64,
        eval_batch_size: int = 500,
        val_fraction: float = 0.1,
        padding: int = 4,
        flip: bool = True,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        seed: int = 0,
        split_seed: int | None = None,
        image_size: int | None = None,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, seed, split_seed)
        self.name, self.source, self.root = name, source, root
        self.val_fraction = val_fraction
        self.augment = Augment(padding, flip)
        self._statistics = (mean, std)

    def setup(self, stage: str | None = None) -> None:
        """Load the images, once."""
        if self.classes:
            return
        images = self.source(root=self.root)
        if not isinstance(images, Images):
            source = getattr(self.source, "func", self.source)
            name = getattr(source, "__qualname__", repr(source))
            raise DataError(f"data.source: {name} returned {type(images).__name__}, not Images")
        images.check()
        measured: Any = (None, None)
        if None in self._statistics:
            measured = channel_statistics(images.train)
        self.mean, self.std = (
            list(found if given is None else given)
            for given, found in zip(self._statistics, measured, strict=True)
        )
        self.train, self.val = images.train, images.test
        if self.val_fraction:
            self.train, self.val = train_val_split(images.train, self.val_fraction, self.split_seed)
        check_enough(len(self.train))
        self.test = images.test
        self.classes = images.classes  # the images themselves are in the splits: held once

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    def calibration_batches(self, count: int) -> Iterator[Tensor]:
        """See `ClassificationData`."""
        loader = BatchLoader(
            self.train, self.batch_size, self.mean, self.std, self.augment, self.seed
        )
        return (images for images, _ in itertools.islice(loader, count))

    def loader(self, images: Any, batch_size: int, train: bool = False) -> BatchLoader:
        """See `ClassificationData`."""
        device = torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device
        augment = self.augment if train else None
        return BatchLoader(
            images, batch_size, self.mean, self.std, augment, self.seed, device, *self.share()
        )
