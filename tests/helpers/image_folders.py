"""Folders of images on disk: root/PART/CLASS/*."""

from pathlib import Path

import numpy as np
from PIL import Image

RNG = np.random.default_rng(0)


def noise(*shape: int) -> np.ndarray:
    """Random bytes."""
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def save(file: Path, pixels: np.ndarray, **options: object) -> Path:
    """An image file, its folders with it; `options` are Pillow's."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file, **options)
    return file


def photo(file: Path, height: int = 40, width: int = 33) -> Path:
    """An image file of noise."""
    return save(file, noise(height, width, 3))
