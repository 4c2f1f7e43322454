"""What the stages need of a data set."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from rni_pl.data.batches import EpochLoader, seeded
from rni_pl.data.splits import train_val_split
from rni_pl.errors import DataError


class ClassificationData(pl.LightningDataModule, ABC):
    """A Lightning data module over labelled images: training, validation and test set.

    A subclass gives `load` and `loader`.

    Args:
        batch_size, eval_batch_size: images a step, over all devices.
        seed: of order and augmentation.
        split_seed: of the validation split; None: `seed`.
        val_fraction: share of the training images that validates, see `train_val_split`; 0: the
            test set picks the best epoch.
        overfit: if not 0, only so many training images, which validate and test as well.
        name: what the data set is called in summaries.
        root: folder of its files.
        mean, std: of each channel, by which pixels in [0, 1] are normalised.

    Attributes:
        classes: names in the order of the labels; empty before `setup`.
        image_shape: channels, height and width.
        train, val, test: the sets; without a validation split `val` is `test`.
        watch_test: makes the test set a second validation loader.
    """

    image_shape: tuple[int, int, int]
    train: Any
    val: Any
    test: Any

    def __init__(
        self, batch_size: int = 64, eval_batch_size: int = 500, seed: int = 0,
        split_seed: int | None = None, val_fraction: float = 0.1, overfit: int = 0, name: str = "",
        root: str = "data", mean: Sequence[float] | None = None, std: Sequence[float] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.seed, self.split_seed = seed, seed if split_seed is None else split_seed
        self.val_fraction, self.overfit = val_fraction, overfit
        self.name, self.root = name, root
        self.mean, self.std = list(mean or []), list(std or [])
        self.classes: Sequence[str] = ()
        self.watch_test = False

    def setup(self, stage: str | None = None) -> None:
        """Load the images and set some aside for validation, once.

        Raises:
            DataError: they cannot be loaded, or there is nothing to tell apart or to validate on.
        """
        if self.classes:
            return
        train, self.test, classes = self.load()
        if len(classes) < 2:
            raise DataError(f"there is only one class ({', '.join(classes)}); needed: at least 2")
        self.train, self.val = train, self.test
        if self.overfit:
            order = torch.randperm(len(train), generator=seeded(self.split_seed))
            self.train = self.val = self.test = train.take(order[: self.overfit])
        elif self.val_fraction:
            self.train, self.val = train_val_split(train, self.val_fraction, self.split_seed)
        self.classes = classes

    def load(self) -> tuple[Any, Any, Sequence[str]]:
        """The training images, the test images, and the names of the classes.

        Both have a length, int64 `labels` of shape (N,), and `take(indices)`. To set as well:
        `image_shape`, and `mean` and `std` where they were not given.
        """
        raise NotImplementedError

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def sizes(self) -> list[int]:
        """Number of images that train, validate and test."""
        return [len(self.train), len(self.val), len(self.test)]

    @abstractmethod
    def loader(
        self, images: Any, batch_size: int, train: bool = False, shared: bool = True
    ) -> EpochLoader:
        """Batches of one of the sets, shuffled and augmented if to `train`.

        Of each batch it is this process's `share`, on its device; unless `shared` all, on the CPU.
        """

    def calibration_batches(self, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and labels of the first `count` training batches, on the CPU, alike everywhere."""
        loader = self.loader(self.train, self.batch_size, train=True, shared=False)
        return itertools.islice(loader, count)

    def train_dataloader(self) -> Any:
        """Shuffled and augmented batches."""
        return self.loader(self.train, self.batch_size, train=True)

    def val_dataloader(self) -> Any:
        """The set that picks the best epoch, and the test set if it is watched."""
        loader = self.loader(self.val, self.eval_batch_size)
        if self.watch_test and self.val is not self.test:
            return [loader, self.test_dataloader()]
        return loader

    def test_dataloader(self) -> Any:
        """The test set."""
        return self.loader(self.test, self.eval_batch_size)

    def share(self) -> tuple[int, int]:
        """This process's number among those that share each batch, and how many there are."""
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size
