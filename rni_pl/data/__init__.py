"""Data sets: images in memory, augmented on the device as whole batches, or read from folders."""

from rni_pl.data.augment import Augment
from rni_pl.data.base import ClassificationData
from rni_pl.data.folder import FolderData
from rni_pl.data.images import Images, Split
from rni_pl.data.loader import BatchLoader, EpochLoader
from rni_pl.data.module import ImageData
from rni_pl.data.sources.cifar import cifar10, cifar100
from rni_pl.data.sources.digits import digits
from rni_pl.data.sources.image_folder import image_folder

__all__ = [
    "Augment",
    "BatchLoader",
    "ClassificationData",
    "EpochLoader",
    "FolderData",
    "ImageData",
    "Images",
    "Split",
    "cifar10",
    "cifar100",
    "digits",
    "image_folder",
]
