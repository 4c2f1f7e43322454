"""Data sets too large for memory, read while training: ImageNet's recipe and layout."""

import os
import signal
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2 as transforms

from rni_pl.data.base import ClassificationData
from rni_pl.data.batches import EpochLoader, seeded
from rni_pl.data.image_files import ImageFiles, check_images, list_splits, read_image
from rni_pl.errors import DataError


class TransformedFiles(Dataset):
    """Images of `files`, read when asked for: float32 (3, S, S) after `transform`, and label.

    An item is an image in an epoch, ``(epoch, index)``; where `transform` draws random numbers
    (`seed` given), they depend on these three only, whichever process reads it.
    """

    def __init__(self, files: ImageFiles, transform: Any, seed: int | None) -> None:
        self.files, self.transform, self.seed = files, transform, seed

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, int]:
        epoch, index = item
        label = int(self.files.labels[index])
        pixels = torch.from_numpy(read_image(self.files.paths[index]).copy()).permute(2, 0, 1)
        if self.seed is None:
            return self.transform(pixels), label
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(seeded(self.seed, epoch, index).get_state())
            return self.transform(pixels), label


class FolderLoader(EpochLoader):
    """Batches of images that worker processes read, see `EpochLoader`."""

    def __init__(
        self, files: ImageFiles, transform: Any, batch_size: int, seed: int, train: bool,
        workers: int, rank: int = 0, world_size: int = 1,
    ) -> None:  # fmt: skip
        super().__init__(len(files), batch_size, seed, train, rank, world_size)
        self._loader = DataLoader(
            TransformedFiles(files, transform, seed if train else None),
            batch_sampler=self.sampler,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # or it would draw from the network's
            worker_init_fn=_ignore_interrupts,
        )

    def batches(self) -> Iterator[Any]:
        """See `EpochLoader`."""
        try:
            yield from self._loader
        except DataError as error:  # from a worker it comes with a trace in front
            raise DataError(str(error).strip().splitlines()[-1].split("DataError: ")[-1]) from error


def _ignore_interrupts(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; the training process decides when to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class FolderData(ClassificationData):
    """Training, validation and test batches from ``root/train/CLASS/*`` and ``root/val/CLASS/*``.

    ImageNet's usual recipe: random resized crop and flip in training; in evaluation the centre
    of the image, resized so that the crop is 224 of 256 parts of its shorter side. ``val`` is the
    test set.

    Args:
        name: what the data set is called in summaries.
        root: the folder.
        image_size: height and width of the crops.
        mean, std: of each channel, pixels in [0, 1].
        workers: processes that read and augment images, for each device; 0: the training process.
        check_files: look at every file before training, see `check_images`.
        options: see `ClassificationData`.
    """

    def __init__(
        self, name: str, root: str, image_size: int = 224,
        mean: Sequence[float] = (0.485, 0.456, 0.406), std: Sequence[float] = (0.229, 0.224, 0.225),
        workers: int = 4, check_files: bool = True, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(name=name, root=root, mean=mean, std=std, **options)
        self.image_shape = 3, image_size, image_size
        self.workers, self.check_files = workers, check_files

    def load(self) -> tuple[ImageFiles, ImageFiles, list[str]]:
        """See `ClassificationData`; the images are listed only."""
        train, test, classes = list_splits(self.root, "val")
        if self.check_files and os.environ.get("LOCAL_RANK", "0") == "0":
            check_images(train.paths + test.paths)
        return train, test, classes

    def transform(self, train: bool) -> Any:
        """What makes uint8 images (3, H, W) into normalised crops, float32 (3, S, S)."""
        size = self.image_shape[1]
        if train:
            crop = [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip()]
        else:
            crop = [transforms.Resize(round(size * 256 / 224)), transforms.CenterCrop(size)]
        scale = transforms.ToDtype(torch.float32, scale=True)
        return transforms.Compose([*crop, scale, transforms.Normalize(self.mean, self.std)])

    def loader(
        self, images: Any, batch_size: int, train: bool = False, shared: bool = True
    ) -> FolderLoader:
        """See `ClassificationData`."""
        given = images, self.transform(train), batch_size, self.seed, train
        if not shared:
            return FolderLoader(*given, workers=0)
        return FolderLoader(*given, self.workers, *self.share())
