"""The batches of an epoch: which images are in which, and which of them are a process's own."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from rni_pl.errors import DataError


class SharedBatches(Sampler[list[tuple[int, int]]]):
    """Batches of `batch_size` images, of which each of `world_size` processes takes its rows.

    The order depends on (seed, epoch) only, so the batches are the same for any number of
    processes, and no image is seen twice. In training they are shuffled, and a last one with fewer
    than two images a process is left out, since BatchNorm cannot train on one; in evaluation a
    last one with fewer than one joins the batch before.

    Attributes:
        epoch: the present one; Lightning calls `set_epoch`.
        first: number of the batch at which the epoch begins; 0 unless a run is resumed.

    Raises:
        DataError: there are fewer images than processes, or in training than two for each.
    """

    def __init__(
        self, count: int, batch_size: int, seed: int = 0, training: bool = False,
        rank: int = 0, world_size: int = 1,
    ) -> None:  # fmt: skip
        needed = 2 * world_size if training else world_size
        if count < needed:
            many = f"{world_size} processes" if world_size > 1 else "BatchNorm"
            raise DataError(f"{count} images are too few for {many}; needed: at least {needed}")
        self.count, self.seed, self.training = count, seed, training
        self.rank, self.world_size = rank, world_size
        self.epoch = self.first = 0
        ends = [*range(batch_size, count, batch_size), count]
        rest = count - (len(ends) - 1) * batch_size
        if training and rest < 2 * world_size:
            del ends[-1]
        elif len(ends) > 1 and rest < world_size:
            del ends[-2]
        self._bounds = list(zip([0, *ends], ends, strict=False))

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def of_all_processes(self) -> Iterator[Tensor]:
        """Indices of the images of every batch, over all processes."""
        order = torch.arange(self.count)
        if self.training:
            order = torch.randperm(self.count, generator=seeded(self.seed, self.epoch))
        return (order[start:end] for start, end in self._bounds[self.first :])

    def rows(self, size: int) -> slice:
        """This process's rows of a batch of `size` images."""
        start, end = (size * rank // self.world_size for rank in (self.rank, self.rank + 1))
        return slice(start, end)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """This process's items ``(epoch, index)`` of each batch."""
        for batch in self.of_all_processes():
            yield [(self.epoch, index) for index in batch[self.rows(len(batch))].tolist()]

    def __len__(self) -> int:
        return len(self._bounds)


class EpochLoader:
    """The batches of an epoch, of each the rows that are this process's, from any batch on.

    A run can be repeated, or resumed at any step, with any number of processes.
    """

    def __init__(
        self, count: int, batch_size: int, seed: int, train: bool, rank: int, world_size: int
    ) -> None:
        self.seed = seed
        # Both names are those of a torch DataLoader: Lightning asks for them, and tells the epoch.
        self.sampler = SharedBatches(count, batch_size, seed, train, rank, world_size)
        self.batch_sampler = self.sampler
        self._done = 0
        self._resumed = (-1, 0)

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Any]:
        # Not before the first batch is asked for: Lightning tells the epoch after making iterators.
        epoch, done = self._resumed
        self.sampler.first = done if epoch == self.sampler.epoch else 0
        for number, batch in enumerate(self.batches(), self.sampler.first):
            self._done = number + 1
            yield batch

    def batches(self) -> Iterator[Any]:
        """This process's part of each batch that `sampler` gives; for a subclass to say."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, int]:
        """How many batches of which epoch are done."""
        return {"epoch": self.sampler.epoch, "done": self._done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Leave out batches that are done, in their epoch."""
        self._resumed = state["epoch"], state["done"]


def seeded(*entropy: int) -> torch.Generator:
    """A CPU generator whose stream depends on the numbers given, but for zeros at their end.

    So an epoch's order and the augmentation of its first batch are drawn from one stream.
    """
    state = np.random.SeedSequence(entropy).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 32 | int(state[1]))
