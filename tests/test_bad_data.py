"""Images of every kind are read, or refused with the file named, before anything is trained."""

import contextlib
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
from PIL import Image
from test_bad_input import refused, unplug

from rni_pl.data import FolderData, ImageData, Images, Split, image_folder
from rni_pl.data.sources.image_folder import check_images, read_image
from rni_pl.errors import DataError

RNG = np.random.default_rng(0)
TINY = ("arch=resnet20", "trainer.max_epochs=1", "trainer.enable_model_summary=false",
        "data.batch_size=4", "data.image_size=32")  # fmt: skip


def noise(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def photo(file: Path, height: int = 40, width: int = 33) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(height, width, 3)).save(file)
    return file


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


def replace(root: Path, contents: bytes, name: str = "3.jpg") -> Path:
    file = root / "train" / "dog" / name
    file.write_bytes(contents)
    return file


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
    file = replace(data[1], contents(data[1]) if callable(contents) else contents)
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
    alpha = np.dstack([rgb, noise(8, 8)])
    wide = grey.astype(np.uint16) * 257
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(grey).convert("LA").save(tmp_path / "grey_alpha.png")
    Image.fromarray(wide).save(tmp_path / "wide.png")
    Image.fromarray(wide).save(tmp_path / "wide.tif")
    Image.fromarray(grey > 99).save(tmp_path / "bits.png")
    for name in ("grey.png", "grey_alpha.png", "wide.png", "wide.tif"):
        assert (read_image(tmp_path / name) == grey[:, :, None]).all(), name
    assert set(np.unique(read_image(tmp_path / "bits.png"))) == {0, 255}
    Image.fromarray(rgb).save(tmp_path / "rgb.png")
    Image.fromarray(alpha, "RGBA").save(tmp_path / "rgba.png")
    Image.fromarray(rgb).save(tmp_path / "rgb.webp", lossless=True)
    for name in ("rgb.png", "rgba.png", "rgb.webp"):
        assert (read_image(tmp_path / name) == rgb).all(), name
    Image.fromarray(rgb).convert("P").save(tmp_path / "palette.gif", save_all=True,
                                           append_images=[Image.fromarray(grey)])  # fmt: skip
    Image.fromarray(rgb).convert("CMYK").save(tmp_path / "cmyk.jpg")
    for name in ("palette.gif", "cmyk.jpg"):
        assert read_image(tmp_path / name).shape == (8, 8, 3)
    check_images(sorted(tmp_path.iterdir()))


@pytest.mark.parametrize("values", [[0.5], [-3], [70_000]], ids=["float", "negative", "32 bits"])
def test_pixels_without_a_known_range(tmp_path: Path, values: list) -> None:
    kind = np.float32 if values == [0.5] else np.int32
    Image.fromarray(np.full((8, 8), values[0], kind)).save(tmp_path / "x.tif")
    for look in (read_image, lambda file: check_images([file])):
        with pytest.raises(DataError, match=r"x\.tif.*neither 8- nor 16-bit"):
            look(tmp_path / "x.tif")


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
    test = next(path for path in root.iterdir() if path.name != "train")
    for file in list((root / "train" / "cat").iterdir()) + list(
        (root / "train").glob("dog/[1-5]*")
    ):
        file.unlink()
    refused(command("train", *settings(data)), "cat holds no images")
    for part in (root / "train", test):
        shutil.rmtree(part / "cat")
    refused(command("train", *settings(data)), "one class alone (dog)", "at least 2")
    photo(root / "train" / "cat" / "0.png")
    refused(command("train", *settings(data)), "data.val_fraction=0.2 of 2 training images")
    finished = command("train", *settings(data), "data.val_fraction=0", "hydra.run.dir=run")
    assert finished.status == 0, finished.err
    refused(command("train", *settings(data), "data.val_fraction=0.5"), "1 training images are too")


def test_many_faults_are_counted(data: tuple[str, Path]) -> None:
    files = sorted((data[1] / "train").rglob("*.*"))
    for file in files[:8]:
        file.write_bytes(b"")
    with pytest.raises(DataError, match=r"0\.png.*1\.jpg.*4\.png.*\(and 3 more files\)"):
        check_images(files)


def test_the_check_of_files_can_be_left_out(command: Callable, tmp_path: Path) -> None:
    """Then training itself names the file, with worker processes too, in one line."""
    root = tmp_path / "images"
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            for i in range(3):
                photo(root / part / name / f"{i}.jpg")
    file = replace(root, cut(root), "2.jpg")
    arguments = settings(("imagenet", root))
    refused(command("train", *arguments), str(file))
    for workers in (0, 1):
        finished = command("train", *arguments, "data.check_files=false", "data.val_fraction=0",
                           f"data.workers={workers}", f"hydra.run.dir=run_{workers}")  # fmt: skip
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


def bad_source(root: str, what: str) -> Images:
    """A data set of a user's that is wrong in one way."""
    images = torch.zeros(8, 3, 8, 8, dtype=torch.uint8)
    labels = torch.arange(8) % 2
    if what == "high label":
        labels[3] = 2
    elif what == "negative label":
        labels[3] = -1
    elif what == "float pixels":
        images = images.float() / 255
    elif what == "channels last":
        images = images.permute(0, 2, 3, 1)
    elif what == "fewer labels":
        labels = labels[:7]
    elif what == "empty":
        images, labels = images[:0], labels[:0]
    sound = Split(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1]))
    return Images(Split(images, labels), sound, ["a", "b"])


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("high label", "label 2 in the training set is out of range: 2 classes"),
        ("negative label", "label -1 in the training set is out of range"),
        ("float pixels", "training images are torch.float32"),
        ("channels last", r"of shape \(8, 8, 8, 3\); needed: torch.uint8 of shape \(N, 3, H, W\)"),
        ("fewer labels", r"training labels are .* needed: torch.int64 of shape \(8,\)"),
        ("empty", "the training set holds no images"),
    ],
)
def test_sources_of_a_users(command: Callable, what: str, words: str) -> None:
    module = ImageData("mine", lambda root: bad_source(root, what))
    with pytest.raises(DataError, match=words):
        module.setup()
    source = f"{{_target_: test_bad_data.bad_source, _partial_: true, what: {what}}}"
    finished = command("train", "data=digits", "~data.source", f"+data.source={source}", *TINY[:4])
    refused(finished)


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


def test_cifar_files_are_not_unpickled_unless_they_are_cifars(
    command: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pickle

    from left_by_runs import Trap

    unplug(monkeypatch)
    folder = tmp_path / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"):
        (folder / name).write_bytes(pickle.dumps(Trap(tmp_path / "proof")))
    refused(command("train", "data=cifar10", f"data.root={tmp_path / 'data'}"), "cifar")
    assert not (tmp_path / "proof").exists()
