"""Batches: how an epoch is gone through, and those of images that live on the training device."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from rni_pl.data.augment import Augment, normalise
from rni_pl.data.images import Split, check_enough
from rni_pl.data.order import SharedBatches, seeded


class EpochLoader:
    """The batches of an epoch, of each the rows that are this process's, from any batch on.

    The order depends on (seed, epoch) alone, so a run can be repeated, or resumed at any step,
    whatever the number of processes, see `SharedBatches`.
    """

    def __init__(
        self, count: int, batch_size: int, seed: int, train: bool, rank: int, world_size: int
    ) -> None:
        if train:
            check_enough(count, world_size)
        self.seed = seed
        # Named as in a torch DataLoader: Lightning tells the sampler the epoch.
        self.batch_sampler = SharedBatches(count, batch_size, seed, train, rank, world_size)
        self.sampler = self.batch_sampler.sampler
        self._done = 0
        self._resumed = (-1, 0)

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[Any]:
        # Not before the first batch is asked for: Lightning tells the epoch after making iterators.
        epoch, done = self._resumed
        start = done if epoch == self.sampler.epoch else 0
        for number, batch in enumerate(self.batches(start), start):
            self._done = number + 1
            yield batch

    def batches(self, start: int) -> Iterator[Any]:
        """The batches of the present epoch, from number `start` on."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, int]:
        """How many batches of which epoch are done."""
        return {"epoch": self.sampler.epoch, "done": self._done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Leave out batches that are done, in their epoch."""
        self._resumed = state["epoch"], state["done"]


class BatchLoader(EpochLoader):
    """Whole batches ``(images, labels)``: normalised float32 (n, 3, H, W) and int64 (n,).

    The split moves to `device` once, as uint8; augmentation and normalisation happen there. The
    augmentation of a batch depends on (seed, epoch, batch) alone. Shuffled where `augment` is
    given.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        augment: Augment | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(len(split), batch_size, seed, augment is not None, rank, world_size)
        self.split = Split(split.images.to(device), split.labels.to(device))
        self.mean, self.std = list(mean), list(std)
        self.augment = augment

    def batches(self, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of the present epoch, from number `start` on."""
        epoch = self.sampler.epoch
        for number, indices in enumerate(self.batch_sampler.global_batches(start), start):
            yield self._batch(indices, epoch, number)

    def _batch(self, indices: Tensor, epoch: int, number: int) -> tuple[Tensor, Tensor]:
        rows = self.batch_sampler.rows(len(indices))
        mine = indices[rows].to(self.split.labels.device)
        images = self.split.images[mine]
        if self.augment is not None:
            draws = self.augment.draw(len(indices), seeded(self.seed, epoch, number))
            draws.offsets, draws.flips = draws.offsets[rows], draws.flips[rows]
            images = self.augment(images, draws)
        return normalise(images, self.mean, self.std), self.split.labels[mine]
