"""Batches: their order, and those of images that live on the training device."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from rni_pl.data.augment import Augment, normalise
from rni_pl.data.images import Split, check_enough


class EpochShuffle(Sampler[int]):
    """An order of `count` images that depends on seed and epoch alone."""

    def __init__(self, count: int, seed: int, shuffle: bool) -> None:
        self.count = count
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def order(self) -> Tensor:
        """Indices in the order of the present epoch, shape (count,)."""
        if not self.shuffle:
            return torch.arange(self.count)
        return torch.randperm(self.count, generator=seeded(self.seed, self.epoch))

    def __iter__(self) -> Iterator[int]:
        return iter(self.order().tolist())

    def __len__(self) -> int:
        return self.count


class EpochLoader:
    """Which images make up the batches of an epoch, and which of them are this process's.

    The order depends on (seed, epoch) alone, so a run can be repeated, or resumed at any step,
    whatever the number of processes: each takes its share of every batch of `batch_size` images. In
    training a last batch with fewer than two images a process is left out, since BatchNorm cannot
    train on one.
    """

    def __init__(
        self, count: int, batch_size: int, seed: int, train: bool, rank: int, world_size: int
    ) -> None:
        if train:
            check_enough(count, world_size)
        self.batch_size = batch_size
        self.seed = seed
        self.rank, self.world_size = rank, world_size
        # Where Lightning looks for what to tell the epoch to, as in a torch DataLoader.
        self.sampler = EpochShuffle(count, seed, shuffle=train)
        self.batch_sampler = None
        self._least = 2 * world_size if train else 1
        self._done = 0
        self._resumed = (-1, 0)

    def __len__(self) -> int:
        full, rest = divmod(self.sampler.count, self.batch_size)
        return full + (rest >= self._least)

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

    def share(self, count: int) -> tuple[int, int]:
        """Where this process's rows of a batch of `count` images begin and end."""
        return count * self.rank // self.world_size, count * (self.rank + 1) // self.world_size

    def state_dict(self) -> dict[str, int]:
        """How many batches of which epoch are done."""
        return {"epoch": self.sampler.epoch, "done": self._done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Leave out batches that are done, in their epoch."""
        self._resumed = state["epoch"], state["done"]


class BatchLoader(EpochLoader):
    """Whole batches ``(images, labels)``: normalised float32 (n, 3, H, W) and int64 (n,).

    The split moves to `device` once, as uint8; augmentation and normalisation happen there. The
    augmentation of a batch (`augment` given: in training) depends on (seed, epoch, batch) alone.
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
        order = self.sampler.order().to(self.split.labels.device)
        epoch = self.sampler.epoch
        for number in range(start, len(self)):
            indices = order[number * self.batch_size : (number + 1) * self.batch_size]
            yield self._batch(indices, epoch, number)

    def _batch(self, indices: Tensor, epoch: int, number: int) -> tuple[Tensor, Tensor]:
        start, end = self.share(len(indices))
        mine = indices[start:end]
        images = self.split.images[mine]
        if self.augment is not None:
            draws = self.augment.draw(len(indices), seeded(self.seed, epoch, number))
            draws.offsets, draws.flips = draws.offsets[start:end], draws.flips[start:end]
            images = self.augment(images, draws)
        return normalise(images, self.mean, self.std), self.split.labels[mine]


def seeded(*entropy: int) -> torch.Generator:
    """A CPU generator whose stream depends on all the numbers given."""
    state = np.random.SeedSequence(entropy).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 32 | int(state[1]))
