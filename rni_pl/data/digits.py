"""scikit-learn's 1,797 handwritten digits (UCI, Alpaydin & Kaynak 1998), shipped with it."""

import torch
from torch.nn import functional as F

from rni_pl.data.in_memory import Images, Split


def digits(root: str = "") -> Images:
    """8x8 digits as 32x32 RGB: 1,437 for training, 360 for testing, the same for every seed.

    `root` is not needed: the images come with scikit-learn.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    raw = load_digits()
    small = torch.tensor(raw.images, dtype=torch.float32)[:, None] * (255 / 16)
    large = F.interpolate(small, size=(32, 32), mode="bilinear", align_corners=False)
    images = large.round().clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
    labels = torch.tensor(raw.target, dtype=torch.long)
    train, test = train_test_split(
        range(len(labels)), test_size=0.2, random_state=0, stratify=raw.target
    )
    everything = Split(images, labels)
    return Images(
        train=everything.take(torch.tensor(train)),
        test=everything.take(torch.tensor(test)),
        classes=[str(digit) for digit in range(10)],
    )
