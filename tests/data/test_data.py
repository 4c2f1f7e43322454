"""Images arrive as torchvision's transforms would make them, in an order that seeds decide."""

from pathlib import Path

import numpy as np
import pytest
import torch
from image_folders import save
from torchvision.transforms import v2 as transforms

from rni_pl.data import Augment, BatchLoader, ImageData, Split, digits, image_folder
from rni_pl.data.augment import normalise
from rni_pl.data.in_memory import channel_statistics
from rni_pl.data.splits import train_val_split
from rni_pl.errors import DataError

MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]


def split(count: int, size: int = 32) -> Split:
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)
    return Split(images, torch.arange(count))


def labels(loader: BatchLoader, epoch: int = 0) -> list[int]:
    loader.sampler.set_epoch(epoch)
    return torch.cat([y for _, y in loader]).tolist()


def test_crop_and_flip_are_torchvisions() -> None:
    images = split(50).images
    draws = Augment(4).draw(50, torch.Generator().manual_seed(1))
    found = Augment(4)(images, draws)
    for image, result, (y, x, flipped) in zip(images, found, draws.tolist(), strict=True):
        padded = transforms.functional.pad(image, [4] * 4)
        expected = transforms.functional.crop(padded, y, x, 32, 32)
        if flipped:
            expected = transforms.functional.horizontal_flip(expected)
        assert torch.equal(result, expected)


def test_draws_cover_every_offset_and_half_are_flipped() -> None:
    draws = Augment(4).draw(20_000, torch.Generator().manual_seed(0))
    counts = torch.bincount(draws[:, 0] * 9 + draws[:, 1], minlength=81)
    assert len(counts) == 81
    assert counts.min() > 180  # 247 expected
    assert 0.48 < draws[:, 2].float().mean() < 0.52
    still = Augment(0, flip=False)
    images = split(9).images
    assert torch.equal(still(images, still.draw(9, torch.Generator())), images)


def test_normalise_is_torchvisions() -> None:
    images = split(4).images
    steps = [transforms.ToDtype(torch.float32, scale=True), transforms.Normalize(MEAN, STD)]
    expected = transforms.Compose(steps)(images)
    assert torch.allclose(normalise(images, MEAN, STD), expected, rtol=0, atol=1e-6)


def test_order_depends_on_seed_and_epoch_only() -> None:
    data = split(100)
    one, same, other = (BatchLoader(data, 32, MEAN, STD, Augment(4), seed) for seed in (0, 0, 1))
    torch.rand(7)
    assert labels(one, 3) == labels(same, 3)
    assert labels(one, 3) != labels(one, 4)
    assert labels(one, 3) != labels(other, 3)
    assert sorted(labels(one)) == list(range(100))
    one.sampler.set_epoch(3)
    for (a, _), (b, _) in zip(one, same, strict=True):
        assert torch.equal(a, b)


def test_each_epoch_augments_anew() -> None:
    loader = BatchLoader(split(8), 8, MEAN, STD, Augment(4))
    pictures = []
    for epoch in (0, 1):
        loader.sampler.set_epoch(epoch)
        ((images, y),) = loader
        pictures.append(images[y.argsort()])
    assert sum(torch.equal(a, b) for a, b in zip(*pictures, strict=True)) <= 1


@pytest.mark.parametrize("count", [64, 70, 67])
@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_the_batches_of_one(count: int, world_size: int) -> None:
    data = split(count)
    whole, *shares = (
        list(BatchLoader(data, 16, MEAN, STD, Augment(4), rank=rank, world_size=processes))
        for rank, processes in [(0, 1), *((rank, world_size) for rank in range(world_size))]
    )
    for (images, y), *parts in zip(whole[: len(shares[0])], *shares, strict=True):
        assert torch.equal(images, torch.cat([part for part, _ in parts]))
        assert torch.equal(y, torch.cat([part for _, part in parts]))
        assert min(len(part) for _, part in parts) >= 2


def test_evaluation_sees_every_image_once_and_unchanged() -> None:
    data = split(11)
    batches = list(BatchLoader(data, 4, MEAN, STD))
    assert torch.cat([y for _, y in batches]).tolist() == list(range(11))
    expected = normalise(data.images, MEAN, STD)
    assert torch.equal(torch.cat([images for images, _ in batches]), expected)


def test_batches_of_an_interrupted_epoch() -> None:
    whole, resumed = (BatchLoader(split(20), 4, MEAN, STD, Augment(4)) for _ in range(2))
    resumed.load_state_dict({"epoch": 3, "done": 2})
    assert labels(resumed, 2) == labels(whole, 2)
    assert labels(resumed, 3) == labels(whole, 3)[8:]
    assert labels(resumed, 4) == labels(whole, 4)


def test_training_leaves_out_a_last_batch_of_one() -> None:
    assert len(BatchLoader(split(9), 4, MEAN, STD, Augment(4))) == 2
    assert len(BatchLoader(split(10), 4, MEAN, STD, Augment(4))) == 3


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.29, 0.5, 0.9])
@pytest.mark.parametrize("counts", [[50, 50], [100, 7, 3, 2, 1], [0, 11, 9], [1] * 5 + [30]])
def test_validation_split_is_stratified(counts: list[int], fraction: float) -> None:
    y = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    y = y[torch.randperm(len(y))]
    data = Split(torch.arange(len(y)).view(-1, 1, 1, 1), y)
    train, val = train_val_split(data, fraction, seed=0)
    together = torch.cat([train.images, val.images]).flatten()
    assert together.sort().values.tolist() == list(range(len(y)))
    assert torch.equal(y[val.images.flatten()], val.labels)
    room = 0
    for label, count in enumerate(counts):
        taken = int((val.labels == label).sum())
        assert abs(taken - fraction * count) < 1
        assert taken < count or count == 0, "a class has nothing left to train on"
        room += count > taken + 1 and taken < fraction * count
    assert len(val) == round(fraction * len(y)) or (len(val) < fraction * len(y) and not room)


def test_validation_split_is_drawn_by_the_seed() -> None:
    data = Split(torch.arange(200), torch.arange(200) % 10)
    drawn = [train_val_split(data, 0.1, seed)[1].images for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    few = Split(torch.arange(20), torch.arange(20) // 2)  # which classes give one is drawn as well
    assert len({str(train_val_split(few, 0.25, seed)[1].labels) for seed in range(9)}) > 4
    for fraction, classes in ((0.001, 10), (0.5, 200)):
        with pytest.raises(DataError, match=f"data.val_fraction={fraction} of 200 .* to validate"):
            train_val_split(Split(data.images, torch.arange(200) % classes), fraction, seed=0)


def test_channel_statistics_are_numpys() -> None:
    images = split(20).images
    pixels = images.numpy().transpose(1, 0, 2, 3).reshape(3, -1) / 255
    mean, std = channel_statistics(images)
    assert np.allclose(mean, pixels.mean(1), atol=1e-12)
    assert np.allclose(std, pixels.std(1), atol=1e-12)


def test_digits_with_and_without_a_validation_split() -> None:
    images = digits()
    assert images.train.images.shape[1:] == (3, 32, 32)
    assert images.train.images.max() == 255
    assert images.classes == [str(digit) for digit in range(10)]
    whole, parted = (ImageData("digits", digits, val_fraction=share) for share in (0, 0.1))
    whole.setup()
    parted.setup()
    assert whole.val is whole.test
    assert (len(whole.train), len(whole.test)) == (1437, 360)
    assert (len(parted.train), len(parted.val), len(parted.test)) == (1293, 144, 360)


def test_image_folder_reads_what_is_an_image_in_a_class(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    for name in ("a/x.jpg", "a/y.JPEG", "b/z.jfif", "b/zz.png", "lost.png"):
        save(tmp_path / "train" / name, picture)
    save(tmp_path / "test" / "b" / "x.png", picture)
    (tmp_path / "train" / "notes.txt").write_text("no class")
    (tmp_path / "train" / "a" / "notes.txt").write_text("no image")
    (tmp_path / "train" / "a" / "below").mkdir()
    with (
        pytest.warns(UserWarning, match="train: 2 files that are not named as images"),
        pytest.warns(UserWarning, match=r"train: 1 images in no folder .* first .*lost\.png"),
    ):
        images = image_folder(str(tmp_path))
    assert images.classes == ["a", "b"]
    assert images.train.labels.tolist() == [0, 0, 1, 1]
    assert images.test.labels.tolist() == [1]
    assert torch.equal(images.test.images[0], torch.from_numpy(picture).permute(2, 0, 1))


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
