"""What the stages need of a data set."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence, Sized
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from rni_pl.data.loader import EpochLoader


class ClassificationData(pl.LightningDataModule, ABC):
    """A Lightning data module over labelled images: training, validation and test set.

    A subclass has, once `setup` was called (it may be called again): `classes`, names in the order
    of the labels; `mean` and `std` of each channel, by which pixels in [0, 1] are normalised;
    `train`, `val` and `test`, of which `val` is `test` where the test set picks the best epoch.

    Args:
        batch_size: images a step, over all devices.
        eval_batch_size: images a batch in validation and test, over all devices.
        seed: of order and augmentation.
        split_seed: of the validation split; None: `seed`.

    With `watch_test` set, the test set is a second validation loader.
    """

    classes: Sequence[str] = ()
    mean: list[float]
    std: list[float]
    train: Any
    val: Any
    test: Any

    def __init__(
        self, batch_size: int, eval_batch_size: int, seed: int, split_seed: int | None
    ) -> None:
        super().__init__()
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.seed = seed
        self.split_seed = seed if split_seed is None else split_seed
        self.watch_test = False

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def sizes(self) -> list[int]:
        """Number of images that train, validate and test."""
        return [len(self.train), len(self.val), len(self.test)]

    @property
    @abstractmethod
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""

    @abstractmethod
    def loader(self, images: Sized, batch_size: int, train: bool = False) -> EpochLoader:
        """Batches of one of the sets, of each this process's `share`; shuffled and augmented if to
        `train`. An `EpochLoader` goes on in the middle of an epoch, with any number of processes.
        """

    @abstractmethod
    def calibration_batches(self, count: int) -> Iterator[Tensor]:
        """Images of the first `count` training batches, on the CPU, the same on every rank."""

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
