"""The Lightning data module over images in memory."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from rni_pl.data.augment import Augment
from rni_pl.data.images import (
    Images,
    Split,
    channel_statistics,
    check_enough,
    train_val_split,
)
from rni_pl.data.loader import BatchLoader
from rni_pl.errors import DataError


class ImageData(pl.LightningDataModule):
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

    `classes` are the class names in the order of the labels, once `setup` has loaded the images.
    With `watch_test` set, the test set is a second validation loader.
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
        super().__init__()
        self.name, self.source, self.root = name, source, root
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.val_fraction = val_fraction
        self.augment = Augment(padding, flip)
        self.seed = seed
        self.split_seed = seed if split_seed is None else split_seed
        self.watch_test = False
        self._statistics = (mean, std)
        self.classes: list[str] = []

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
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    def train_dataloader(self) -> Any:
        """Shuffled and augmented batches."""
        return self._loader(self.train, self.batch_size, self.augment)

    def val_dataloader(self) -> Any:
        """The set that picks the best epoch, and the test set if it is watched."""
        loader = self._loader(self.val, self.eval_batch_size)
        if self.watch_test and self.val is not self.test:
            return [loader, self.test_dataloader()]
        return loader

    def test_dataloader(self) -> Any:
        """The test set."""
        return self._loader(self.test, self.eval_batch_size)

    def calibration_batches(self, count: int) -> Iterator[Tensor]:
        """Images of the first `count` training batches, on the CPU, the same on every rank."""
        loader = BatchLoader(
            self.train, self.batch_size, self.mean, self.std, self.augment, self.seed
        )
        return (images for images, _ in itertools.islice(loader, count))

    def _loader(self, split: Split, batch_size: int, augment: Augment | None = None) -> BatchLoader:
        device, rank, world_size = torch.device("cpu"), 0, 1
        if self.trainer is not None:
            device = self.trainer.strategy.root_device
            rank, world_size = self.trainer.global_rank, self.trainer.world_size
        return BatchLoader(
            split, batch_size, self.mean, self.std, augment, self.seed, device, rank, world_size
        )
