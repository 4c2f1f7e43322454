"""Folders of images, root/PART/CLASS/*: listing, checking and reading their files."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from rni_pl.errors import DataError, first_line
from rni_pl.progress import track

SUFFIXES = {
    ".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff",
}  # fmt: skip
ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}  # the last bytes of a file that is whole


@dataclass
class ImageFiles:
    """Paths of N images, and their int64 labels of shape (N,)."""

    paths: list[Path]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, indices: Tensor) -> "ImageFiles":
        """The images at `indices`."""
        return ImageFiles([self.paths[i] for i in indices.tolist()], self.labels[indices])


def list_splits(root: str, test: str) -> tuple[ImageFiles, ImageFiles, list[str]]:
    """Images of ``root/train`` and of ``root/test`` (named by `test`), and the classes, sorted.

    Raises:
        DataError: a folder is missing, or it or a class is empty, or the test set has a class that
            ``train`` lacks.
    """
    by_class = [_list_folder(Path(root) / part) for part in ("train", test)]
    classes = sorted(by_class[0])
    unknown = sorted(by_class[1].keys() - by_class[0].keys())
    if unknown:
        raise DataError(f"{root}/{test} has classes that train lacks: {', '.join(unknown[:5])}")
    train, held_out = (
        [(path, i) for i, name in enumerate(classes) for path in found.get(name, [])]
        for found in by_class
    )
    return _labelled(train), _labelled(held_out), classes


def _labelled(files: list[tuple[Path, int]]) -> ImageFiles:
    return ImageFiles([path for path, _ in files], torch.tensor([label for _, label in files]))


def _list_folder(folder: Path) -> dict[str, list[Path]]:
    """Image files by class; hidden files are passed over, others left out with a warning."""
    needed = f"needed: {folder}/CLASS/*"
    if not folder.is_dir():
        root = folder.parent
        raise DataError(f"data.root={root}: image folder {folder} does not exist; {needed}")
    found: dict[str, list[Path]] = {}
    left_out: dict[str, list[Path]] = {}
    for entry in track(_shown(folder), f"listing {folder}"):
        is_class = entry.is_dir()
        if is_class:
            found[entry.name] = []
        for file in _shown(entry) if is_class else [entry]:
            is_image = file.suffix.lower() in SUFFIXES
            if is_class and is_image:
                found[entry.name].append(file)
            elif is_class:
                left_out.setdefault("files that are not named as images", []).append(file)
            elif is_image:
                left_out.setdefault("images in no folder of a class", []).append(file)
    if not found:
        raise DataError(f"image folder {folder} has no classes; {needed}")
    for name, files in found.items():
        if not files:
            raise DataError(f"image folder {folder / name} holds no images")
    for what, files in left_out.items():
        rank_zero_warn(f"{folder}: {len(files)} {what} are left out, the first {files[0]}")
    return found


def _shown(folder: Path) -> list[Path]:
    """What is in a folder, sorted, without hidden files."""
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def check_images(paths: list[Path]) -> None:
    """See that files can be trained on without decoding them all: their headers and their ends.

    What does not end as JPEG and PNG files do is decoded, so that no file is empty, cut off or of
    another kind. Bytes damaged in between show when the file is read.

    Raises:
        DataError: some cannot be read; the first five are named.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        checked = track(pool.map(_fault, paths), "checking images", len(paths))
        faults = [fault for fault in checked if fault]
    if faults:
        more = f" (and {len(faults) - 5} more files)" if len(faults) > 5 else ""
        raise DataError("; ".join(faults[:5]) + more)


def _fault(path: Path) -> str:
    """What is wrong with an image file, if anything."""
    try:
        if not _ends_well(path):
            read_image(path)
    except DataError as error:
        return str(error)
    return ""


def _ends_well(path: Path) -> bool:
    """Whether a file has an image's header and its end; where not, reading it says what is wrong"""
    try:
        with path.open("rb") as file, Image.open(file) as image:
            end = ENDS[image.format or ""]
            file.seek(-len(end), os.SEEK_END)
            return file.read() == end and image.mode[0] not in "IF"
    except Exception:  # damaged bytes make Pillow raise whatever they meet first
        return False


def read_image(path: Path, size: int | None = None) -> np.ndarray:
    """One image as RGB, uint8 (H, W, 3), upright as its EXIF orientation says.

    Greyscale, palette, 16-bit and alpha are converted; of an animation it is the first frame. With
    `size` the shorter side is resized to it and the centre cropped.

    Raises:
        DataError: the file is no image, is damaged, or has pixels that are neither 8- nor 16-bit.
    """
    try:
        with Image.open(path) as file:
            ImageOps.exif_transpose(file, in_place=True)
            grey = _to_eight_bits(file) if file.mode.startswith(("I", "F")) else file
            image = grey.convert("RGB")
    except Exception as error:  # damaged bytes make Pillow raise whatever they meet first
        raise DataError(f"{path} is no image that can be read: {first_line(error)}") from error
    if size is not None:
        image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    return np.asarray(image)


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """16-bit greyscale, scaled: Pillow itself would cut values off at 255."""
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise ValueError("its pixels are neither 8- nor 16-bit numbers")
    return Image.fromarray((values / 257).round().astype(np.uint8))
