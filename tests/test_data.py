"""Images arrive as torchvision's transforms would make them, in an order that seeds decide."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2 as transforms

from rni_pl.data import Augment, BatchLoader, ImageData, Split, digits, image_folder
from rni_pl.data.augment import Draws, normalise
from rni_pl.data.images import channel_statistics, train_val_split
from rni_pl.errors import DataError

MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]


def split(count: int, size: int = 32) -> Split:
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)
    return Split(images, torch.arange(count))


def test_crop_and_flip_are_torchvisions() -> None:
    images = split(50).images
    draws = Augment(4).draw(50, torch.Generator().manual_seed(1))
    found = Augment(4)(images, draws)
    for image, result, (y, x), flipped in zip(
        images, found, draws.offsets.tolist(), draws.flips.tolist(), strict=True
    ):
        padded = transforms.functional.pad(image, [4] * 4)
        expected = transforms.functional.crop(padded, y, x, 32, 32)
        if flipped:
            expected = transforms.functional.horizontal_flip(expected)
        assert torch.equal(result, expected)


def test_draws_cover_every_offset_and_half_are_flipped() -> None:
    draws = Augment(4).draw(20_000, torch.Generator().manual_seed(0))
    counts = torch.bincount(draws.offsets[:, 0] * 9 + draws.offsets[:, 1], minlength=81)
    assert len(counts) == 81
    assert counts.min() > 180  # 247 expected
    assert 0.48 < draws.flips.float().mean() < 0.52
    assert not Augment(4, flip=False).draw(100, torch.Generator()).flips.any()


def test_no_padding_no_flip_changes_nothing() -> None:
    images = split(3).images
    draws = Draws(torch.zeros(3, 2, dtype=torch.long), torch.zeros(3, dtype=torch.bool))
    assert torch.equal(Augment(0, flip=False)(images, draws), images)


def test_normalise_is_torchvisions() -> None:
    images = split(4).images
    steps = [transforms.ToDtype(torch.float32, scale=True), transforms.Normalize(MEAN, STD)]
    expected = transforms.Compose(steps)(images)
    assert torch.allclose(normalise(images, MEAN, STD), expected, rtol=0, atol=1e-6)


def labels(loader: BatchLoader, epoch: int = 0) -> list[int]:
    loader.sampler.set_epoch(epoch)
    return torch.cat([y for _, y in loader]).tolist()


def test_order_depends_on_seed_and_epoch_alone() -> None:
    data = split(100)

    def loader(seed: int) -> BatchLoader:
        return BatchLoader(data, 32, MEAN, STD, Augment(4), seed)

    one, same, other = loader(0), loader(0), loader(1)
    torch.rand(7)
    assert labels(one, 3) == labels(same, 3)
    assert labels(one, 3) != labels(one, 4)
    assert labels(one, 3) != labels(other, 3)
    assert sorted(labels(one)) == list(range(100))
    one.sampler.set_epoch(3)
    for (a, _), (b, _) in zip(one, same, strict=True):
        assert torch.equal(a, b)


def test_each_epoch_augments_anew() -> None:
    data = split(8)
    loader = BatchLoader(data, 8, MEAN, STD, Augment(4))
    pictures = []
    for epoch in (0, 1):
        loader.sampler.set_epoch(epoch)
        ((images, y),) = loader
        pictures.append(images[y.argsort()])
    same = [torch.equal(a, b) for a, b in zip(*pictures, strict=True)]
    assert sum(same) <= 1


@pytest.mark.parametrize("count", [64, 70, 67])
@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_the_batches_of_one(count: int, world_size: int) -> None:
    data = split(count)
    whole = list(BatchLoader(data, 16, MEAN, STD, Augment(4)))
    shares = [
        list(BatchLoader(data, 16, MEAN, STD, Augment(4), rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    for batch, *parts in zip(whole[: len(shares[0])], *shares, strict=True):
        assert torch.equal(batch[0], torch.cat([images for images, _ in parts]))
        assert torch.equal(batch[1], torch.cat([y for _, y in parts]))
        assert min(len(y) for _, y in parts) >= 2


def test_evaluation_sees_every_image_once_and_unchanged() -> None:
    data = split(11)
    batches = list(BatchLoader(data, 4, MEAN, STD))
    assert torch.cat([y for _, y in batches]).tolist() == list(range(11))
    expected = normalise(data.images, MEAN, STD)
    assert torch.equal(torch.cat([images for images, _ in batches]), expected)


def test_training_leaves_out_a_last_batch_of_one() -> None:
    assert len(BatchLoader(split(9), 4, MEAN, STD, Augment(4))) == 2
    assert len(BatchLoader(split(10), 4, MEAN, STD, Augment(4))) == 3


def test_validation_split() -> None:
    data = split(50)
    train, val = train_val_split(data, 0.1, seed=0)
    assert len(val) == 5
    assert sorted([*train.labels.tolist(), *val.labels.tolist()]) == list(range(50))
    again, _ = train_val_split(data, 0.1, seed=0)
    assert torch.equal(again.labels, train.labels)
    other, _ = train_val_split(data, 0.1, seed=1)
    assert not torch.equal(other.labels, train.labels)
    for fraction in (0.001, 0.999):
        with pytest.raises(DataError, match=str(fraction)):
            train_val_split(data, fraction, seed=0)


def test_channel_statistics_are_numpys() -> None:
    data = split(20)
    pixels = data.images.numpy().transpose(1, 0, 2, 3).reshape(3, -1) / 255
    mean, std = channel_statistics(data)
    assert np.allclose(mean, pixels.mean(1), atol=1e-12)
    assert np.allclose(std, pixels.std(1), atol=1e-12)


def test_digits() -> None:
    images = digits()
    assert (len(images.train), len(images.test)) == (1437, 360)
    assert images.train.images.shape[1:] == (3, 32, 32)
    assert images.train.images.max() == 255
    assert images.classes == [str(digit) for digit in range(10)]


def test_module_without_validation_split_validates_on_the_test_set() -> None:
    module = ImageData("digits", digits, val_fraction=0.0)
    module.setup()
    assert module.val is module.test
    assert len(module.train) == 1437
    module = ImageData("digits", digits, val_fraction=0.1)
    module.setup()
    assert len(module.val) == 144
    assert len(module.train) == 1293


def save(path: Path, array: np.ndarray, mode: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array, mode).save(path)


def test_image_folder_reads_all_kinds_of_images(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    grey = pixels[:, :, 0]
    train = tmp_path / "train"
    save(train / "a" / "rgb.png", pixels)
    save(train / "a" / "rgba.png", np.dstack([pixels, np.full((6, 6), 99, np.uint8)]))
    save(train / "b" / "grey.png", grey)
    save(train / "b" / "wide.png", grey.astype(np.uint16) * 257)
    save(tmp_path / "test" / "b" / "x.png", pixels)
    (train / "notes.txt").write_text("no class")
    (train / "a" / "notes.txt").write_text("no image")
    (train / "a" / "below").mkdir()
    with pytest.warns(UserWarning, match="train: 2 files that are not named as images"):
        images = image_folder(str(tmp_path))
    assert images.classes == ["a", "b"]
    assert images.train.labels.tolist() == [0, 0, 1, 1]
    assert images.test.labels.tolist() == [1]
    rgb = torch.from_numpy(pixels).permute(2, 0, 1)
    tripled = torch.from_numpy(grey).expand(3, 6, 6)
    expected = [rgb, rgb, tripled, tripled]  # in the order of the names
    assert all(torch.equal(a, b) for a, b in zip(images.train.images, expected, strict=True))


def test_images_beside_the_class_folders_are_named(tmp_path: Path) -> None:
    for name in ("train/a/x.png", "train/lost.png", "test/a/x.png"):
        save(tmp_path / name, np.zeros((6, 6, 3), np.uint8))
    with pytest.warns(
        UserWarning, match=r"train: 1 images in no folder of a class .*, the first .*lost\.png"
    ):
        assert len(image_folder(str(tmp_path)).train.labels) == 1


def test_image_folder_takes_every_suffix_of_jpeg(tmp_path: Path) -> None:
    for name in ("train/a/x.jpg", "train/a/y.JPEG", "train/b/z.jfif", "test/a/x.jpg"):
        save(tmp_path / name, np.zeros((6, 6, 3), np.uint8))
    assert image_folder(str(tmp_path)).train.labels.tolist() == [0, 0, 1]


def test_image_folder_resizes_and_crops(tmp_path: Path) -> None:
    picture = np.zeros((20, 40, 3), np.uint8)
    picture[:, 10:30] = 200  # the centre
    for part in ("train", "test"):
        save(tmp_path / part / "a" / "x.png", picture)
    save(tmp_path / "train" / "a" / "y.png", picture[:, :20])
    with pytest.raises(DataError, match=r"y\.png: 20x20.*set data\.image_size"):
        image_folder(str(tmp_path))
    images = image_folder(str(tmp_path), image_size=10)
    assert images.train.images.shape == (2, 3, 10, 10)
    assert images.train.images[0].float().mean() > 190
