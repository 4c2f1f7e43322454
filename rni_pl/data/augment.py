"""Augmentation and normalisation of whole batches, on whatever device they are."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Augment:
    """Random crop after `padding` zero pixels on each side, and random horizontal flip."""

    padding: int = 4
    flip: bool = True

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Decide for each of `count` images: int64 (count, 3), the crop's y and x, and 1 to flip.

        On the CPU, so that the device makes no difference.
        """
        offsets = torch.randint(0, 2 * self.padding + 1, (count, 2), generator=generator)
        flips = torch.rand(count, 1, generator=generator) < 0.5
        return torch.cat([offsets, flips], 1)

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Crop and flip uint8 images (N, 3, H, W), each as its row of `draws` says."""
        height, width = images.shape[2:]
        y, x, flips = draws.to(images.device, non_blocking=True).unbind(1)
        if self.padding:
            padded = F.pad(images, [self.padding] * 4)
            windows = padded.unfold(2, height, 1).unfold(3, width, 1)
            images = windows[torch.arange(len(images), device=images.device), :, y, x]
        if self.flip:
            images = torch.where(flips[:, None, None, None] > 0, images.flip(3), images)
        return images


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """``(pixels / 255 - mean) / std`` in float32, in channels_last memory format."""
    pixels = images.to(torch.float32, memory_format=torch.channels_last).div_(255)
    shift = torch.tensor(mean, device=images.device).view(-1, 1, 1)
    return pixels.sub_(shift).div_(torch.tensor(std, device=images.device).view(-1, 1, 1))
