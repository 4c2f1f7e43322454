"""The Lightning data module over folders too large for memory: ImageNet's recipe and layout."""

import itertools
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import v2 as transforms

from rni_pl.data.base import ClassificationData
from rni_pl.data.images import check_classes, check_enough, split_indices
from rni_pl.data.loader import EpochLoader
from rni_pl.data.order import seeded
from rni_pl.data.sources.image_folder import check_images, list_images, read_image
from rni_pl.errors import DataError


class FolderImages(Dataset):
    """Images of one folder, read when asked for: float32 (3, S, S) after `transform`, and label.

    S is the size that `transform` makes. An item is an image in an epoch, ``(epoch, index)``; where
    `transform` draws random numbers (`seed` given), they depend on these three alone, whichever
    process reads it.
    """

    def __init__(
        self, files: list[tuple[Path, int]], transform: Any, seed: int | None = None
    ) -> None:
        self.files, self.transform, self.seed = files, transform, seed

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, int]:
        epoch, index = item
        path, label = self.files[index]
        pixels = torch.from_numpy(read_image(path).copy()).permute(2, 0, 1)
        if self.seed is None:
            return self.transform(pixels), label
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(seeded(self.seed, epoch, index).get_state())
            return self.transform(pixels), label


class FolderLoader(EpochLoader):
    """Batches of images that worker processes read, see `EpochLoader`."""

    def __init__(
        self, images: FolderImages, batch_size: int, seed: int, train: bool, workers: int,
        rank: int = 0, world_size: int = 1,
    ) -> None:  # fmt: skip
        super().__init__(len(images), batch_size, seed, train, rank, world_size)
        self._first = 0
        self._loader = DataLoader(
            images,
            batch_sampler=_Shares(self),
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # or it would draw from the network's
            worker_init_fn=_ignore_interrupts,
        )

    def batches(self, start: int) -> Iterator[Any]:
        """The batches of the present epoch, from number `start` on."""
        self._first = start
        try:
            yield from self._loader
        except DataError as error:  # from a worker it comes with a trace in front
            raise DataError(str(error).strip().splitlines()[-1].split("DataError: ")[-1]) from error

    def shares(self) -> Iterator[list[tuple[int, int]]]:
        """This process's items of each of these batches."""
        epoch = self.sampler.epoch
        for batch in self.batch_sampler.global_batches(self._first):
            yield [(epoch, index) for index in batch[self.batch_sampler.rows(len(batch))].tolist()]


class _Shares(Sampler):
    """What a torch DataLoader asks for its batches."""

    def __init__(self, loader: FolderLoader) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return self.loader.shares()

    def __len__(self) -> int:
        return len(self.loader) - self.loader._first


def _ignore_interrupts(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; the training process decides when to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class FolderData(ClassificationData):
    """Training, validation and test batches from ``root/train/CLASS/*`` and ``root/val/CLASS/*``.

    ImageNet's usual recipe: random resized crop and flip in training; in evaluation the centre
    of the image, resized so that the crop is 224 of 256 parts of its shorter side. ``val`` is the
    test set; `val_fraction` of the training images picks the best epoch, or, if it is 0, ``val``
    does.

    Args:
        name: what the data set is called in summaries.
        root: the folder.
        batch_size, eval_batch_size: images a step, over all devices.
        val_fraction: share of the training images that validates.
        image_size: height and width of the crops.
        mean, std: of each channel, pixels in [0, 1].
        workers: processes that read and augment images, for each device; 0: the training process.
        seed: of order and augmentation.
        split_seed: of the validation split; None: `seed`.
        check_files: look at every file before training, see `check_images`.
    """

    def __init__(
        self,
        name: str,
        root: str,
        batch_size: int = 256,
        eval_batch_size: int = 500,
        val_fraction: float = 0.02,
        image_size: int = 224,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
        workers: int = 4,
        seed: int = 0,
        split_seed: int | None = None,
        check_files: bool = True,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, seed, split_seed)
        self.name, self.root = name, root
        self.val_fraction, self.image_size = val_fraction, image_size
        self.mean, self.std = list(mean), list(std)
        self.workers, self.check_files = workers, check_files

    def setup(self, stage: str | None = None) -> None:
        """List the images, once.

        Raises:
            DataError: a folder is missing or empty, ``val`` has a class that ``train`` lacks, or a
                file is no image.
        """
        if self.classes:
            return
        train, test = (list_images(Path(self.root) / part) for part in ("train", "val"))
        classes = sorted(train)
        unknown = sorted(set(test) - set(train))
        if unknown:
            raise DataError(f"{self.root}/val has classes that train lacks: {unknown[:5]}")
        check_classes(classes)
        crop, centre = self._transforms()
        files, held_out = _labelled(train, classes), _labelled(test, classes)
        if self.check_files and not int(os.environ.get("LOCAL_RANK", "0")):
            check_images([path for path, _ in files + held_out])
        self.test = self.val = FolderImages(held_out, centre)
        if self.val_fraction:
            kept, aside = split_indices(len(files), self.val_fraction, self.split_seed)
            apart = [files[i] for i in aside.tolist()]
            self.val = FolderImages(apart, centre)
            files = [files[i] for i in kept.tolist()]
        check_enough(len(files))
        self.train = FolderImages(files, crop, self.seed)
        self.classes = classes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return 3, self.image_size, self.image_size

    def calibration_batches(self, count: int) -> Iterator[Tensor]:
        """See `ClassificationData`."""
        loader = FolderLoader(self.train, self.batch_size, self.seed, train=True, workers=0)
        return (images for images, _ in itertools.islice(loader, count))

    def _transforms(self) -> tuple[Any, Any]:
        finish = [
            transforms.ToDtype(torch.float32, scale=True),
            transforms.Normalize(self.mean, self.std),
        ]
        crop = [transforms.RandomResizedCrop(self.image_size), transforms.RandomHorizontalFlip()]
        resize = transforms.Resize(round(self.image_size * 256 / 224))
        centre = [resize, transforms.CenterCrop(self.image_size)]
        return transforms.Compose([*crop, *finish]), transforms.Compose([*centre, *finish])

    def loader(self, images: Any, batch_size: int, train: bool = False) -> FolderLoader:
        """See `ClassificationData`."""
        return FolderLoader(images, batch_size, self.seed, train, self.workers, *self.share())


def _labelled(files: dict[str, list[Path]], classes: list[str]) -> list[tuple[Path, int]]:
    return [(path, i) for i, name in enumerate(classes) for path in files.get(name, [])]
