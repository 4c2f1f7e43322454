"""Batches from images that live on the training device."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from rni_pl.data.augment import Augment, normalise
from rni_pl.data.images import Split
from rni_pl.data.order import SharedBatches, seeded


class BatchLoader:
    """Whole batches ``(images, labels)``: normalised float32 (n, 3, H, W) and int64 (n,).

    The split moves to `device` once, as uint8; augmentation and normalisation happen there. The
    order depends on (seed, epoch) alone, the augmentation of a batch on (seed, epoch, batch), so a
    run can be repeated, or resumed at any step, whatever the number of processes: each takes its
    share of the rows of every batch of `batch_size` images, see `SharedBatches`. Shuffled where
    `augment` is given.
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
        self.mean, self.std = list(mean), list(std)
        self.augment = augment
        self.seed = seed
        self.batch_sampler = SharedBatches(
            len(split), batch_size, seed, augment is not None, rank, world_size
        )
        # Named as in a torch DataLoader: Lightning tells the sampler the epoch.
        self.sampler = self.batch_sampler.sampler

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch = self.sampler.epoch
        for number, indices in enumerate(self.batch_sampler.global_batches()):
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
