"""The validation split."""

from typing import Any

import torch
from torch import Tensor

from rni_pl.errors import DataError


def train_val_split(images: Any, fraction: float, seed: int) -> tuple[Any, Any]:
    """Set `fraction` of the images aside for validation, see `validation_indices`.

    `images` have a length, int64 `labels` of shape (N,), and `take(indices)`. Returns those to
    train on and those to validate on, both in the order in which they were.

    Raises:
        DataError: there is nothing to validate on.
    """
    chosen = validation_indices(images.labels, fraction, seed)
    if not len(chosen):
        raise DataError(
            f"data.val_fraction={fraction} of {len(images)} training images leaves nothing to "
            "validate on: each class keeps an image to train on"
        )
    kept = torch.ones(len(images), dtype=torch.bool)
    kept[chosen] = False
    return images.take(kept.nonzero().flatten()), images.take(chosen)


def validation_indices(labels: Tensor, fraction: float, seed: int) -> Tensor:
    """Draw `fraction` of the images by `seed`, stratified by class; their indices, sorted.

    Every class gives ``fraction * (its images)``, rounded down or up so that the total is
    ``round(fraction * N)``: up where the remainder is largest, at random among equal ones. No class
    gives its last image, so the total is smaller where many classes have only one.

    Args:
        labels: int64 of shape (N,).
        fraction: in [0, 1).
        seed: of the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    counts = torch.bincount(labels)
    ties = torch.rand(len(counts), generator=generator).tolist()
    shares = fraction * counts.double()
    taken = shares.floor().long()
    remainders = (shares - taken).tolist()
    spare = ((taken < shares) & (taken + 1 < counts)).nonzero().flatten().tolist()
    spare.sort(key=lambda label: (remainders[label], ties[label]), reverse=True)
    taken[spare[: round(fraction * len(labels)) - int(taken.sum())]] += 1
    by_class = order[labels[order].argsort(stable=True)].split(counts.tolist())
    chosen = [images[:count] for images, count in zip(by_class, taken.tolist(), strict=True)]
    return torch.cat(chosen).sort().values
