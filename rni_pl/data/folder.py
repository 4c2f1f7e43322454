"""The Lightning data module over folders too large for memory: ImageNet's recipe and layout."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision.transforms import v2 as transforms

from rni_pl.data.images import split_indices
from rni_pl.data.order import SharedBatches
from rni_pl.data.sources.image_folder import list_images, read_image
from rni_pl.errors import DataError


class FolderImages(Dataset):
    """Images of one folder, read when asked for: float32 (3, S, S) after `transform`, and label."""

    def __init__(self, files: dict[str, list[Path]], classes: list[str], transform: Any) -> None:
        self.files = [(path, i) for i, name in enumerate(classes) for path in files.get(name, [])]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.files[index]
        pixels = torch.from_numpy(read_image(path).copy()).permute(2, 0, 1)
        return self.transform(pixels), label


class FolderData(pl.LightningDataModule):
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
    ) -> None:
        super().__init__()
        self.name, self.root = name, root
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.val_fraction, self.image_size = val_fraction, image_size
        self.mean, self.std = list(mean), list(std)
        self.workers, self.seed = workers, seed
        self.split_seed = seed if split_seed is None else split_seed
        self.watch_test = False
        self.classes: list[str] = []

    def setup(self, stage: str | None = None) -> None:
        """List the images, once.

        Raises:
            DataError: a folder is missing or empty, or ``val`` has a class that ``train`` lacks.
        """
        if self.classes:
            return
        train, test = (list_images(Path(self.root) / part) for part in ("train", "val"))
        classes = sorted(train)
        unknown = sorted(set(test) - set(train))
        if unknown:
            raise DataError(f"{self.root}/val has classes that train lacks: {unknown[:5]}")
        crop, centre = self._transforms()
        everything = FolderImages(train, classes, crop)
        self.train: Dataset = everything
        self.test: Dataset = FolderImages(test, classes, centre)
        self.val: Dataset = self.test
        if self.val_fraction:
            kept, aside = split_indices(len(everything), self.val_fraction, self.split_seed)
            self.val = Subset(FolderImages(train, classes, centre), aside.tolist())
            self.train = Subset(everything, kept.tolist())
        self.classes = classes

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return 3, self.image_size, self.image_size

    def train_dataloader(self) -> Any:
        """Shuffled and augmented batches."""
        return self._loader(self.train, self.batch_size, training=True)

    def val_dataloader(self) -> Any:
        """The set that picks the best epoch, and the test set if it is watched."""
        loader = self._loader(self.val, self.eval_batch_size)
        if self.watch_test and self.val is not self.test:
            return [loader, self.test_dataloader()]
        return loader

    def test_dataloader(self) -> Any:
        """The test set."""
        return self._loader(self.test, self.eval_batch_size)

    def calibration_batches(self, count: int) -> Iterator[Tensor]:
        """Images of `count` training batches, on the CPU, the same on every rank."""
        order = torch.randperm(len(self.train), generator=self._generator())  # type: ignore[arg-type]
        for indices in order.split(self.batch_size)[:count]:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                images = torch.stack([self.train[i][0] for i in indices.tolist()])
            yield images

    def _transforms(self) -> tuple[Any, Any]:
        finish = [
            transforms.ToDtype(torch.float32, scale=True),
            transforms.Normalize(self.mean, self.std),
        ]
        crop = [transforms.RandomResizedCrop(self.image_size), transforms.RandomHorizontalFlip()]
        resize = transforms.Resize(round(self.image_size * 256 / 224))
        centre = [resize, transforms.CenterCrop(self.image_size)]
        return transforms.Compose([*crop, *finish]), transforms.Compose([*centre, *finish])

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def _loader(self, images: Dataset, batch_size: int, training: bool = False) -> DataLoader:
        rank, world_size = 0, 1
        if self.trainer is not None:
            rank, world_size = self.trainer.global_rank, self.trainer.world_size
        count = len(images)  # type: ignore[arg-type]
        return DataLoader(
            images,
            batch_sampler=SharedBatches(count, batch_size, self.seed, training, rank, world_size),
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=self._generator(),
        )
