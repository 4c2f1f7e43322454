"""Any folder of images: root/train/CLASS/* and root/test/CLASS/*."""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from rni_pl.data.images import Images, Split
from rni_pl.errors import DataError, first_line
from rni_pl.progress import track

SUFFIXES = {
    ".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff",
}  # fmt: skip
ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}  # the last bytes of a file that is whole


def image_folder(root: str, image_size: int | None = None) -> Images:
    """Decode a whole folder into memory, as RGB.

    Without `image_size` all images must have one size; with it their shorter side is resized to
    it and the centre cropped.

    Raises:
        DataError: a folder is missing or empty, `test` has a class that `train` lacks, a file
            is no image, or sizes differ.
    """
    train, test = list_images(Path(root) / "train"), list_images(Path(root) / "test")
    classes = sorted(train)
    unknown = sorted(set(test) - set(train))
    if unknown:
        raise DataError(f"{root}/test has classes that train lacks: {', '.join(unknown[:5])}")
    splits = [_decode(files, classes, image_size) for files in (train, test)]
    if splits[0].images.shape[1:] != splits[1].images.shape[1:]:
        raise DataError(f"{root}: train and test images differ in size; set data.image_size")
    return Images(splits[0], splits[1], classes)


def list_images(folder: Path) -> dict[str, list[Path]]:
    """Image files by class.

    Raises:
        DataError: the folder is missing, or it or a class is empty.
    """
    if not folder.is_dir():
        raise DataError(
            f"data.root={folder.parent}: image folder {folder} does not exist; needed: "
            f"{folder}/CLASS/*"
        )
    found: dict[str, list[Path]] = {}
    others: list[Path] = []
    entries = sorted(_shown(folder))
    beside = [e for e in entries if e.suffix.lower() in SUFFIXES and not e.is_dir()]
    for entry in track(entries, f"listing {folder}"):
        if entry.is_dir():
            files = sorted(_shown(entry))
            found[entry.name] = [file for file in files if file.suffix.lower() in SUFFIXES]
            others += [file for file in files if file.suffix.lower() not in SUFFIXES]
    if not found:
        raise DataError(f"image folder {folder} has no classes; needed: {folder}/CLASS/*")
    for name, files in found.items():
        if not files:
            raise DataError(f"image folder {folder / name} holds no images")
    if others:
        named = f"{len(others)} files that are not named as images"
        rank_zero_warn(f"{folder}: {named} are left out, the first {others[0]}")
    if beside:
        named = f"{len(beside)} images in no folder of a class"
        rank_zero_warn(f"{folder}: {named} are left out, the first {beside[0]}")
    return found


def _shown(folder: Path) -> Iterator[Path]:
    """What is in a folder, without hidden files."""
    return (entry for entry in folder.iterdir() if not entry.name.startswith("."))


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
        with path.open("rb") as file, Image.open(file) as image:
            end = ENDS.get(image.format or "")
            if end is None or image.mode[0] in "IF":
                whole = False
            else:
                file.seek(-len(end), os.SEEK_END)
                whole = file.read() == end
        if not whole:
            read_image(path)
    except DataError as error:
        return str(error)
    except Exception as error:  # damaged bytes make Pillow raise whatever they meet first
        return f"{path} is no image that can be read: {first_line(error)}"
    return ""


def _decode(files: dict[str, list[Path]], classes: list[str], size: int | None) -> Split:
    paths = [path for name in classes for path in files.get(name, [])]
    labels = [i for i, name in enumerate(classes) for _ in files.get(name, [])]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # PIL decodes outside Python's lock
        decoded = pool.map(partial(read_image, size=size), paths)
        images = _stack(track(decoded, "decoding images", len(paths)), paths)
    return Split(images, torch.tensor(labels, dtype=torch.long))


def _stack(decoded: Iterable[np.ndarray], paths: list[Path]) -> Tensor:
    stacked: np.ndarray | None = None
    for i, image in enumerate(decoded):
        if stacked is None:
            stacked = _room(len(paths), image.shape)
        if image.shape != stacked.shape[1:]:
            sizes = (f"{s[1]}x{s[0]}" for s in (stacked.shape[1:], image.shape))
            raise DataError(
                f"images differ in size ({paths[0]}: {next(sizes)}, {paths[i]}: {next(sizes)}); "
                "set data.image_size"
            )
        stacked[i] = image
    assert stacked is not None
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous()


def _room(count: int, shape: tuple[int, ...]) -> np.ndarray:
    try:
        return np.empty((count, *shape), np.uint8)
    except MemoryError as error:
        raise DataError(
            f"{count} images of {shape[1]}x{shape[0]} pixels do not fit into memory: set a smaller "
            "data.image_size, or have them read while training (data=imagenet)"
        ) from error


def read_image(path: Path, size: int | None = None) -> np.ndarray:
    """One image as RGB, uint8 (H, W, 3); greyscale, palette, 16-bit and alpha are converted.

    Of an animation it is the first frame.

    Raises:
        DataError: the file is no image, is damaged, or has pixels that are neither 8- nor 16-bit.
    """
    try:
        with Image.open(path) as file:
            grey = _to_eight_bits(file) if file.mode.startswith(("I", "F")) else file
            image = grey.convert("RGB")
    except Exception as error:  # damaged bytes make Pillow raise whatever they meet first
        raise DataError(f"{path} is no image that can be read: {first_line(error)}") from error
    return np.asarray(image if size is None else _resize(image, size))


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """16-bit greyscale, scaled: Pillow itself would cut values off at 255."""
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise ValueError("its pixels are neither 8- nor 16-bit numbers")
    return Image.fromarray((values / 257).round().astype(np.uint8))


def _resize(image: Image.Image, size: int) -> Image.Image:
    width, height = image.size
    factor = size / min(width, height)
    new = max(size, round(width * factor)), max(size, round(height * factor))
    if new != (width, height):
        image = image.resize(new, Image.Resampling.BILINEAR)
    left, top = (new[0] - size) // 2, (new[1] - size) // 2
    return image.crop((left, top, left + size, top + size))
