"""Data sets: images in memory, augmented on the device as whole batches, or read from folders."""

from rni_pl.data.augment import Augment
from rni_pl.data.base import ClassificationData
from rni_pl.data.batches import EpochLoader
from rni_pl.data.cifar import cifar10, cifar100
from rni_pl.data.digits import digits
from rni_pl.data.image_folder import image_folder
from rni_pl.data.in_memory import BatchLoader, ImageData, Images, Split
from rni_pl.data.streamed import FolderData

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
