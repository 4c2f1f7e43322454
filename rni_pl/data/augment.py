"""Augmentation and normalisation of whole batches, on whatever device they are."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass
class Draws:
    """Random decisions for a batch of N images: crop offsets (N, 2) and flips (N,)."""

    offsets: Tensor
    flips: Tensor


@dataclass(frozen=True)
class Augment:
    """Random crop after `padding` zero pixels on each side, and random horizontal flip."""

    padding: int = 4
    flip: bool = True

    def draw(self, count: int, generator: torch.Generator) -> Draws:
        """Decide for `count` images, on the CPU, so that the device makes no difference."""
        offsets = torch.randint(0, 2 * self.padding + 1, (count, 2), generator=generator)
        flips = torch.rand(count, generator=generator) < 0.5
        return Draws(offsets, flips & self.flip)

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """Crop and flip a batch of uint8 images (N, 3, H, W), each in its own way."""
        device = images.device
        if self.padding:
            images = crop(images, self.padding, draws.offsets.to(device, non_blocking=True))
        if self.flip:
            images = flip(images, draws.flips.to(device, non_blocking=True))
        return images


def crop(images: Tensor, padding: int, offsets: Tensor) -> Tensor:
    """From each image, padded with zeros, the window of the same size at its own offset (y, x)."""
    height, width = images.shape[2:]
    padded = F.pad(images, [padding] * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(len(images), device=images.device), :, offsets[:, 0], offsets[:, 1]]


def flip(images: Tensor, flips: Tensor) -> Tensor:
    """Mirror the images chosen by the mask `flips` from left to right."""
    return torch.where(flips[:, None, None, None], images.flip(3), images)


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """``(pixels / 255 - mean) / std`` in float32, in channels_last memory format."""
    pixels = images.to(torch.float32, memory_format=torch.channels_last).div_(255)
    shift = torch.tensor(mean, device=images.device).view(-1, 1, 1)
    return pixels.sub_(shift).div_(torch.tensor(std, device=images.device).view(-1, 1, 1))
