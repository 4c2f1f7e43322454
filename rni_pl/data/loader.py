"""Batches from images that live on the training device."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from rni_pl.data.augment import Augment, normalise
from rni_pl.data.images import Split


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


class BatchLoader:
    """Whole batches ``(images, labels)``: normalised float32 (n, 3, H, W) and int64 (n,).

    The split moves to `device` once, as uint8; augmentation and normalisation happen there. The
    order depends on (seed, epoch) alone, the augmentation of a batch on (seed, epoch, batch), so a
    run can be repeated, or resumed at any step, whatever the number of processes: each takes its
    share of the rows of every batch of `batch_size` images. In training (`augment` given) a last
    batch with fewer than two images a process is left out, since BatchNorm cannot train on one.
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
        self.split = Split(split.images.to(device), split.labels.to(device))
        self.batch_size = batch_size
        self.mean, self.std = list(mean), list(std)
        self.augment = augment
        self.seed = seed
        self.rank, self.world_size = rank, world_size
        # Where Lightning looks for what to tell the epoch to, as in a torch DataLoader.
        self.sampler = EpochShuffle(len(split), seed, shuffle=augment is not None)
        self.batch_sampler = None

    def __len__(self) -> int:
        full, rest = divmod(len(self.split), self.batch_size)
        needed = 1 if self.augment is None else 2 * self.world_size
        return full + (rest >= needed)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = self.sampler.order().to(self.split.labels.device)
        epoch = self.sampler.epoch
        for number in range(len(self)):
            indices = order[number * self.batch_size : (number + 1) * self.batch_size]
            yield self._batch(indices, epoch, number)

    def _batch(self, indices: Tensor, epoch: int, number: int) -> tuple[Tensor, Tensor]:
        start, end = (len(indices) * rank // self.world_size for rank in (self.rank, self.rank + 1))
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
