"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), in torchvision's files."""

from pathlib import Path
from typing import Any

import torch
from torchvision import datasets

from rni_pl.data.in_memory import Images, Split
from rni_pl.errors import DataError, first_line
from rni_pl.progress import others_bars


def cifar10(root: str) -> Images:
    """CIFAR-10 from ``root``, downloaded when missing. Raises `DataError` where it cannot be."""
    return _load(datasets.CIFAR10, root)


def cifar100(root: str) -> Images:
    """CIFAR-100 from ``root``, downloaded when missing. Raises `DataError` where it cannot be."""
    return _load(datasets.CIFAR100, root)


def _load(dataset: Any, root: str) -> Images:
    folder = Path(root)
    new = not folder.exists()
    try:
        with others_bars():
            train, test = (dataset(root, train=part, download=True) for part in (True, False))
    except (OSError, RuntimeError) as error:  # URLError is an OSError
        if new and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        raise DataError(
            f"{dataset.__name__} is missing or damaged in data.root={root}, and cannot be "
            f"downloaded ({first_line(error)}): put {dataset.filename} into {folder.resolve()}, or "
            "use data=digits, which needs no download"
        ) from error
    return Images(_split(train), _split(test), list(train.classes))


def _split(dataset: Any) -> Split:
    images = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()
    return Split(images, torch.tensor(dataset.targets))
