"""Pictures for the examples: scikit-learn's handwritten digits on canvases, boxes and masks."""

from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F


@dataclass
class Canvases:
    """N canvases of several digits each, which do not overlap.

    Attributes:
        images: shape (N, 3, size, size), in [0, 1].
        masks: where there is ink, bool, shape (N, 1, size, size).
        boxes: of each canvas: left, top, right, bottom of every digit, shape (digits, 4).
        labels: of each canvas: 0 to 9, shape (digits,).
    """

    images: Tensor
    masks: Tensor
    boxes: list[Tensor]
    labels: list[Tensor]


def canvases(count: int, size: int = 64, seed: int = 0, train: bool = True) -> Canvases:
    """`count` canvases; those to test on have other people's digits."""
    draw = torch.Generator().manual_seed(seed + (0 if train else 10**6))
    found = load_digits()
    ink = torch.tensor(found.images, dtype=torch.float32) / 16
    own = slice(0, 1400) if train else slice(1400, None)
    ink, names = ink[own], torch.tensor(found.target)[own]
    images, boxes, labels = torch.zeros(count, 1, size, size), [], []
    for canvas in images:
        here, classes = [], []
        for row in range(2):
            for column in range(2):
                if float(torch.rand((), generator=draw)) < 0.3:
                    continue
                number = int(torch.randint(len(ink), (), generator=draw))
                side = int(torch.randint(size // 4, size // 2 - 2, (), generator=draw))
                digit = F.interpolate(ink[number][None, None], (side, side), mode="bilinear")[0]
                room = size // 2 - side
                y, x = (int(torch.randint(room, (), generator=draw)) for _ in range(2))
                y, x = y + row * size // 2, x + column * size // 2
                canvas[:, y : y + side, x : x + side] = digit
                rows, columns = (digit[0] > 0.3).nonzero(as_tuple=True)
                corners = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
                here.append(torch.stack(corners).float() + torch.tensor([x, y, x, y]))
                classes.append(int(names[number]))
        boxes.append(torch.stack(here) if here else torch.zeros(0, 4))
        labels.append(torch.tensor(classes, dtype=torch.long))
    noise = 0.1 * torch.rand(images.shape, generator=draw)
    return Canvases(
        (images + noise).clamp(max=1).expand(-1, 3, -1, -1), images > 0.3, boxes, labels
    )
