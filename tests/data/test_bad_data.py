"""Images of every kind are read, or refused with the file named, before anything is trained."""

import contextlib
import pickle
import shutil
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import damages
from image_folders import noise, photo, save
from PIL import Image
from PIL.ExifTags import Base
from PIL.Image import Transpose
from refusals import refused, unplug

from rni_pl.data import FolderData, ImageData, Images, Split, image_folder
from rni_pl.data.image_files import check_images, read_image
from rni_pl.errors import DataError

TINY = ("arch=resnet20", "trainer.max_epochs=1", "trainer.enable_model_summary=false",
        "data.batch_size=4", "data.image_size=32")  # fmt: skip


@pytest.fixture(params=["image_folder", "imagenet"])
def data(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """The name of a kind of data set, and a folder of two classes for it."""
    root = tmp_path / "images"
    for part in ("train", "test" if request.param == "image_folder" else "val"):
        for name in ("cat", "dog"):
            for i in range(6):
                photo(root / part / name / f"{i}.{'jpg' if i % 2 else 'png'}")
    return request.param, root


def settings(data: tuple[str, Path]) -> list[str]:
    extra = ["data.workers=0"] if data[0] == "imagenet" else []
    return [f"data={data[0]}", f"data.root={data[1]}", "data.val_fraction=0.2", *TINY, *extra]


def cut(root: Path) -> bytes:
    whole = (root / "train" / "dog" / "1.jpg").read_bytes()
    return whole[: len(whole) // 2]


def png(width: int, height: int) -> bytes:
    """A picture of that size in a few bytes, as far as its header goes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "contents",
    [b"", b"no image at all", cut, png(60_000, 60_000), b"GIF89a" + bytes(40)],
    ids=["empty", "text", "cut off", "bomb", "gif"],
)
def test_files_that_are_no_images(
    command: Callable, data: tuple[str, Path], contents: bytes | Callable
) -> None:
    file = data[1] / "train" / "dog" / "3.jpg"
    file.write_bytes(contents(data[1]) if callable(contents) else contents)
    refused(command("train", *settings(data)), str(file), "no image that can be read")


def test_a_folder_and_a_broken_link_by_the_name_of_an_image(
    command: Callable, data: tuple[str, Path]
) -> None:
    folder = data[1] / "train" / "cat"
    (folder / "9.png").mkdir()
    refused(command("train", *settings(data)), "cat/9.png", "Is a directory")
    (folder / "9.png").rmdir()
    (folder / "9.png").symlink_to("nowhere.png")
    refused(command("train", *settings(data)), "cat/9.png", "No such file")


def test_hidden_files_are_passed_over(data: tuple[str, Path]) -> None:
    name, root = data
    (root / "train" / "cat" / "._1.jpg").write_bytes(b"resource fork")
    (root / "train" / ".cache").mkdir()
    if name == "image_folder":
        assert len(image_folder(str(root), 32).train) == 12
    else:
        module = FolderData(name, str(root), val_fraction=0)
        module.setup()
        assert len(module.train) == 12


def test_every_kind_of_pixels(tmp_path: Path) -> None:
    grey, rgb = noise(8, 8), noise(8, 8, 3)
    wide = grey.astype(np.uint16) * 257
    for name, pixels in (("grey.png", grey), ("wide.png", wide), ("wide.tif", wide)):
        save(tmp_path / name, pixels)
    Image.fromarray(grey).convert("LA").save(tmp_path / "grey_alpha.png")
    for name in ("grey.png", "grey_alpha.png", "wide.png", "wide.tif"):
        assert (read_image(tmp_path / name) == grey[:, :, None]).all(), name
    save(tmp_path / "bits.png", grey > 99)
    assert set(np.unique(read_image(tmp_path / "bits.png"))) == {0, 255}
    save(tmp_path / "rgb.png", rgb)
    save(tmp_path / "rgba.png", np.dstack([rgb, noise(8, 8)]))
    save(tmp_path / "rgb.webp", rgb, lossless=True)
    for name in ("rgb.png", "rgba.png", "rgb.webp"):
        assert (read_image(tmp_path / name) == rgb).all(), name
    Image.fromarray(rgb).convert("P").save(tmp_path / "palette.gif", save_all=True,
                                           append_images=[Image.fromarray(grey)])  # fmt: skip
    Image.fromarray(rgb).convert("CMYK").save(tmp_path / "cmyk.jpg")
    for name in ("palette.gif", "cmyk.jpg"):
        assert read_image(tmp_path / name).shape == (8, 8, 3)
    check_images(sorted(tmp_path.iterdir()))


# What a camera does to an upright picture, by the orientation that it writes into the file.
CAMERA = {
    2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE, 6: Transpose.ROTATE_90, 7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_270,
}  # fmt: skip


def save_turned(file: Path, upright: np.ndarray, orientation: int) -> Path:
    exif = Image.Exif()
    exif[Base.Orientation] = orientation
    stored = Image.fromarray(upright).transpose(CAMERA[orientation])
    return save(file, np.asarray(stored), exif=exif)


@pytest.mark.parametrize("orientation", CAMERA)
def test_photographs_are_read_upright(tmp_path: Path, orientation: int) -> None:
    for name, upright in (("rgb.png", noise(6, 4, 3)), ("wide.png", noise(6, 4))):
        pixels = upright if name == "rgb.png" else upright.astype(np.uint16) * 257
        file = save_turned(tmp_path / name, pixels, orientation)
        assert (read_image(file) == upright.reshape(6, 4, -1)).all(), name


def test_every_data_set_of_files_reads_photographs_upright(data: tuple[str, Path]) -> None:
    name, root = data
    dark_below = np.full((64, 64, 3), 255, np.uint8)
    dark_below[32:] = 0
    for file in root.glob("t*/*/*.jpg"):
        save_turned(file, dark_below, 6)
    if name == "image_folder":
        pictures = image_folder(str(root), 32).train.images.float()
    else:
        module = FolderData(name, str(root), 32, workers=0, val_fraction=0)
        module.setup()
        pictures = next(iter(module.loader(module.train, 12)))[0]
    upright = pictures[:, :, :12].amin((1, 2, 3)) > pictures[:, :, 20:].amax((1, 2, 3))
    assert upright.sum() == 6


@pytest.mark.parametrize("values", [[0.5], [-3], [70_000]], ids=["float", "negative", "32 bits"])
def test_pixels_without_a_known_range(tmp_path: Path, values: list) -> None:
    kind = np.float32 if values == [0.5] else np.int32
    file = save(tmp_path / "x.tif", np.full((8, 8), values[0], kind))
    for look in (read_image, lambda file: check_images([file])):
        with pytest.raises(DataError, match=r"x\.tif.*neither 8- nor 16-bit"):
            look(file)


def test_sizes(command: Callable, data: tuple[str, Path]) -> None:
    name, root = data
    for file, size in (("tiny", (1, 1)), ("wide", (2, 300)), ("high", (300, 2))):
        photo(root / "train" / "cat" / f"{file}.png", *size)
    finished = command("train", *settings(data), "hydra.run.dir=run")
    assert finished.status == 0, finished.err
    if name == "image_folder":
        without = [item for item in settings(data) if "image_size" not in item]
        shutil.rmtree("run")
        refused(command("train", *without), "images differ in size", "set data.image_size")


def test_one_image_and_one_class(command: Callable, data: tuple[str, Path]) -> None:
    _, root = data
    for file in [*(root / "train" / "cat").iterdir(), *(root / "train").glob("dog/[1-5]*")]:
        file.unlink()
    refused(command("train", *settings(data)), "cat holds no images")
    for folder in root.glob("*/cat"):
        shutil.rmtree(folder)
    refused(command("train", *settings(data)), "only one class (dog)", "at least 2")
    photo(root / "train" / "cat" / "0.png")
    refused(command("train", *settings(data)), "data.val_fraction=0.2 of 2 training images")
    finished = command("train", *settings(data), "data.val_fraction=0", "hydra.run.dir=run")
    assert finished.status == 0, finished.err


def test_many_faults_are_counted(data: tuple[str, Path]) -> None:
    files = sorted((data[1] / "train").rglob("*.*"))
    for file in files[:8]:
        file.write_bytes(b"")
    with pytest.raises(DataError, match=r"0\.png.*1\.jpg.*4\.png.*\(and 3 more files\)"):
        check_images(files)


@pytest.mark.parametrize("data", ["imagenet"], indirect=True)
def test_the_check_of_files_can_be_left_out(command: Callable, data: tuple[str, Path]) -> None:
    """Then training itself names the file, with worker processes too, in one line."""
    file = data[1] / "train" / "dog" / "1.jpg"
    file.write_bytes(cut(data[1]))
    refused(command("train", *settings(data)), str(file))
    for workers in (0, 1):
        finished = command("train", *settings(data), "data.check_files=false",
                           "data.val_fraction=0", f"data.workers={workers}",
                           f"hydra.run.dir=run_{workers}")  # fmt: skip
        assert finished.status == 2
        (line,) = finished.err.splitlines()
        assert line.startswith(f"error: {file} is no image that can be read: ")


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "tif", "webp"])
def test_damaged_images_never_crash(tmp_path: Path, suffix: str) -> None:
    file = photo(tmp_path / f"x.{suffix}")
    for damaged in damages(file.read_bytes(), 60):
        file.write_bytes(damaged)
        for look in (lambda: read_image(file), lambda: check_images([file])):
            with contextlib.suppress(DataError):
                look()


PIXELS, LABELS = torch.zeros(8, 3, 8, 8, dtype=torch.uint8), torch.arange(8) % 2
SOURCES = {
    "high label": (PIXELS, LABELS * 2, "training set has label 2, which is out of range: 2 cl"),
    "negative label": (PIXELS, -LABELS, "training set has label -1, which is out of range"),
    "float pixels": (PIXELS / 255, LABELS, "training images are torch.float32"),
    "channels last": (PIXELS.permute(0, 2, 3, 1), LABELS, r"of shape \(8, 8, 8, 3\); needed: "),
    "fewer labels": (PIXELS, LABELS[:7], r"training labels are .* needed: torch.int64 \(8,\)"),
    "empty": (PIXELS[:0], LABELS[:0], "the training set holds no images"),
    "one image": (PIXELS[:1], LABELS[:1], "1 images are too few"),
}  # fmt: skip


def bad_source(root: str, what: str) -> Images:
    """A data set of a user's that is wrong in one way."""
    images, labels, _ = SOURCES[what]
    return Images(Split(images, labels), Split(PIXELS[:2], LABELS[:2]), ["a", "b"])


@pytest.mark.parametrize("what", SOURCES)
def test_sources_of_a_users(command: Callable, what: str) -> None:
    module = ImageData("mine", lambda root: bad_source(root, what), val_fraction=0)
    with pytest.raises(DataError, match=SOURCES[what][2]):  # noqa: PT012
        module.setup()
        module.train_dataloader()
    source = f"{{_target_: test_bad_data.bad_source, _partial_: true, what: {what}}}"
    refused(command("train", "data=digits", "~data.source", f"+data.source={source}", *TINY[:4]))


def test_cifar_archives_cannot_leave_the_data_folder(
    command: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is unpacked, and nothing unpickled, that is not the very archive of CIFAR-10."""
    unplug(monkeypatch)
    root = tmp_path / "data"
    root.mkdir()
    (tmp_path / "payload").write_text("x")
    with tarfile.open(root / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "payload", "../escaped")
        archive.add(tmp_path / "payload", "cifar-10-batches-py/data_batch_1")
    finished = command("train", "data=cifar10", f"data.root={root}")
    refused(finished, "cannot be downloaded")
    assert not (tmp_path / "escaped").exists()
    assert not (root / "cifar-10-batches-py").exists()


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple:
        return Path.touch, (self.proof,)


def test_cifar_files_are_not_unpickled_unless_they_are_cifars(
    command: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unplug(monkeypatch)
    folder = tmp_path / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"):
        (folder / name).write_bytes(pickle.dumps(Trap(tmp_path / "proof")))
    refused(command("train", "data=cifar10", f"data.root={tmp_path / 'data'}"), "cifar")
    assert not (tmp_path / "proof").exists()
