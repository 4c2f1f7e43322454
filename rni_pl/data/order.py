"""Which images make up which batch, and which of them are a process's own."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from rni_pl.errors import DataError


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


class SharedBatches(Sampler[list[int]]):
    """Batches of `batch_size` images, of which each of `world_size` processes takes its rows.

    The batches are the same for any number of processes, and no image is seen twice. In training
    they are shuffled, and a last one with fewer than two images a process is left out, since
    BatchNorm cannot train on one; in evaluation a last one with fewer than one joins the batch
    before.

    Raises:
        DataError: there are fewer images than processes.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        seed: int = 0,
        training: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if count < world_size:
            raise DataError(f"{count} images cannot be shared by {world_size} processes")
        self.rank, self.world_size = rank, world_size
        # Where Lightning looks for what to tell the epoch to.
        self.sampler = EpochShuffle(count, seed, shuffle=training)
        ends = [*range(batch_size, count, batch_size), count]
        rest = count - (len(ends) - 1) * batch_size
        if training and rest < 2 * world_size:
            del ends[-1]
        elif len(ends) > 1 and rest < world_size:
            del ends[-2]
        self._bounds = list(zip([0, *ends], ends, strict=False))

    def global_batches(self, first: int = 0) -> Iterator[Tensor]:
        """Indices of the images of every batch from number `first` on, over all processes."""
        order = self.sampler.order()
        return (order[start:end] for start, end in self._bounds[first:])

    def rows(self, size: int) -> slice:
        """This process's rows of a batch of `size` images."""
        start, end = (size * rank // self.world_size for rank in (self.rank, self.rank + 1))
        return slice(start, end)

    def __iter__(self) -> Iterator[list[int]]:
        return (batch[self.rows(len(batch))].tolist() for batch in self.global_batches())

    def __len__(self) -> int:
        return len(self._bounds)


def seeded(*entropy: int) -> torch.Generator:
    """A CPU generator whose stream depends on the numbers given, but for zeros at their end.

    So an epoch's order and the augmentation of its first batch are drawn from one stream.
    """
    state = np.random.SeedSequence(entropy).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 32 | int(state[1]))
