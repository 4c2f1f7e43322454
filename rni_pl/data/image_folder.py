"""Any folder of images that fits into memory: root/train/CLASS/* and root/test/CLASS/*."""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch

from rni_pl.data.image_files import ImageFiles, list_splits, read_image
from rni_pl.data.in_memory import Images, Split
from rni_pl.errors import DataError
from rni_pl.progress import track


def image_folder(root: str, image_size: int | None = None) -> Images:
    """Decode a whole folder into memory, as RGB.

    Without `image_size` all images must have one size; with it their shorter side is resized to
    it and the centre cropped.

    Raises:
        DataError: see `list_splits`; or a file is no image, or sizes differ.
    """
    train, test, classes = list_splits(root, "test")
    splits = [_decode(files, image_size) for files in (train, test)]
    if splits[0].images.shape[1:] != splits[1].images.shape[1:]:
        raise DataError(f"{root}: train and test images differ in size; set data.image_size")
    return Images(splits[0], splits[1], classes)


def _decode(files: ImageFiles, size: int | None) -> Split:
    height, width, channels = read_image(files.paths[0], size).shape
    try:
        pixels = np.empty((len(files), height, width, channels), np.uint8)
    except MemoryError as error:
        raise DataError(
            f"{len(files)} images of {width}x{height} pixels do not fit into memory: set a smaller "
            "data.image_size, or have them read while training (data=imagenet)"
        ) from error
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # PIL decodes outside Python's lock
        decoded = pool.map(partial(read_image, size=size), files.paths)
        for i, image in enumerate(track(decoded, "decoding images", len(files))):
            if image.shape != pixels.shape[1:]:
                sizes = [f"{s[1]}x{s[0]}" for s in (pixels.shape[1:], image.shape)]
                raise DataError(
                    f"images differ in size ({files.paths[0]}: {sizes[0]}, "
                    f"{files.paths[i]}: {sizes[1]}); set data.image_size"
                )
            pixels[i] = image
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    return Split(images, files.labels)
