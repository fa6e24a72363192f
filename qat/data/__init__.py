"""Data sets as LightningDataModules. `qat.data.hf.HuggingFaceData` is imported by its full name: it needs an extra."""

from __future__ import annotations

from qat.data.augmentation import Augmentation
from qat.data.base import ImageData, Splits
from qat.data.cifar10 import Cifar10
from qat.data.digits import Digits
from qat.data.image_folder import ImageFolderData
from qat.data.images import ImageBatches, InMemory
from qat.data.normalization import IMAGENET_MEAN, IMAGENET_STD, Normalization

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Augmentation",
    "Cifar10",
    "Digits",
    "ImageBatches",
    "ImageData",
    "ImageFolderData",
    "InMemory",
    "Normalization",
    "Splits",
]
