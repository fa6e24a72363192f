"""Digits: 1,797 real scanned handwritten digits that scikit-learn ships, as 3 x 32 x 32. Embedded, no download.

1,437 training and 360 validation images, stratified by class. The split is a function of `split_seed` alone, so runs
with different seeds are measured on the same images. Source: UCI Optical Recognition of Handwritten Digits (Alpaydin
and Kaynak 1998).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn import functional as F

from qat.data.augmentation import Augmentation
from qat.data.base import ImageData, Splits
from qat.data.checks import at_least, member
from qat.data.images import ImageBatches, InMemory, input_shape
from qat.data.normalization import CHANNELS, Normalization

VAL_SHARE = 0.2
MAX_INK = 16  # scikit-learn's grey values are 0 .. 16
MEAN = (0.305, 0.305, 0.305)  # of all images; grey, so the same in each channel
STD = (0.324, 0.324, 0.324)  # at 32 x 32: interpolation smooths the 0.376 of the 8 x 8 originals


class Digits(ImageData):
    """Scanned digits, ten classes, held in memory.

    Args:
        batch_size: Images in a batch.
        num_workers: Leave at 0: a batch costs less than its way between processes.
        seed: Order and augmentation of training images.
        split_seed: Which images are held out.
        image_size: Height and width that the 8 x 8 originals are interpolated to, bilinear.
        augmentation: "none" or "crop" (shifts by up to an eighth of the size); digits have no mirror images.
        mean: Of each channel, in 0 .. 1; None is that of the digits.
        std: Of each channel, in 0 .. 1; None is that of the digits.
    """

    def __init__(
        self,
        *,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        split_seed: int = 0,
        image_size: int = 32,
        augmentation: str = Augmentation.NONE,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed)
        self.split_seed = at_least("split_seed", split_seed, 0)
        self.image_size = at_least("image_size", image_size, 1)
        self.augmentation = member(Augmentation, "augmentation", augmentation)
        self.normalization = Normalization.of(mean, std, usual=(MEAN, STD))

    def load(self) -> Splits:
        """Read, split and enlarge the digits."""
        ink, digits = load_digits(return_X_y=True)  # float64 [1797, 64] in 0 .. 16, int64 [1797]
        labels = torch.from_numpy(digits).long()
        train, val = train_test_split(
            range(len(labels)), test_size=VAL_SHARE, stratify=digits, random_state=self.split_seed
        )
        pixels = enlarge(torch.from_numpy(ink).float().view(-1, 1, 8, 8) / MAX_INK, self.image_size)
        read = InMemory(pixels[train])
        return Splits(
            train=ImageBatches(
                read, labels[train], normalization=self.normalization, augment=self.augmentation, seed=self.seed
            ),
            calibration=ImageBatches(read, labels[train], normalization=self.normalization),
            val=ImageBatches(InMemory(pixels[val]), labels[val], normalization=self.normalization),
            class_names=tuple(str(digit) for digit in range(10)),
            input_shape=input_shape(self.image_size, self.image_size),
        )


def enlarge(grey: Tensor, size: int) -> Tensor:
    """Grey images, float [N, 1, H, W] in 0 .. 1, as uint8 [N, 3, size, size], interpolated."""
    larger = F.interpolate(grey, size=(size, size), mode="bilinear", align_corners=False)
    return (larger * 255).round().clamp(0, 255).to(torch.uint8).repeat(1, CHANNELS, 1, 1)
