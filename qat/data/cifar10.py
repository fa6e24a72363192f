"""CIFAR-10: 50,000 training and 10,000 validation images of ten classes, 3 x 32 x 32; downloaded at first use.

Source: Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html, by way of torchvision, which checks the digests.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torchvision.datasets import CIFAR10

from qat.data.augmentation import Augmentation
from qat.data.base import ImageData, Splits
from qat.data.checks import member
from qat.data.images import ImageBatches, InMemory, input_shape
from qat.data.normalization import Normalization
from qat.errors import DataError


class Cifar10(ImageData):
    """CIFAR-10, held in memory (180 MB).

    Args:
        root: Folder that holds `cifar-10-batches-py`, or will.
        download: Fetch what is missing. With False a missing file is an error.
        batch_size: Images in a batch.
        num_workers: Leave at 0: a batch costs less than its way between processes.
        seed: Order and augmentation of training images.
        augmentation: "none", "crop" (4 pixels of padding) or "crop_flip".
        mean: Of each channel, in 0 .. 1. None is ImageNet's, because published CIFAR checkpoints use it.
        std: Of each channel, in 0 .. 1; None is ImageNet's.
    """

    def __init__(
        self,
        *,
        root: str | Path,
        download: bool = True,
        batch_size: int = 128,
        num_workers: int = 0,
        seed: int = 0,
        augmentation: str = Augmentation.CROP_FLIP,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed)
        self.root = Path(root).expanduser()
        self.download = download
        self.augmentation = member(Augmentation, "augmentation", augmentation)
        self.normalization = Normalization.of(mean, std)

    def prepare_data(self) -> None:
        """Download in one process, before the others look."""
        if self._splits is None and self.download:
            self._read(train=False)

    def load(self) -> Splits:
        """Read both parts into memory."""
        train, val = self._read(train=True), self._read(train=False)
        read = InMemory(_pixels(train))
        labels = torch.tensor(train.targets, dtype=torch.int64)
        return Splits(
            train=ImageBatches(
                read, labels, normalization=self.normalization, augment=self.augmentation, seed=self.seed
            ),
            calibration=ImageBatches(read, labels, normalization=self.normalization),
            val=ImageBatches(
                InMemory(_pixels(val)),
                torch.tensor(val.targets, dtype=torch.int64),
                normalization=self.normalization,
            ),
            class_names=tuple(train.classes),
            input_shape=input_shape(*read.pixels.shape[-2:]),
        )

    def _read(self, *, train: bool) -> CIFAR10:
        try:
            return CIFAR10(self.root, train=train, download=self.download)
        except (OSError, RuntimeError) as error:  # no network, no such folder, a digest that does not match
            raise DataError(
                f"CIFAR-10 cannot be read from {self.root} (download={self.download}): {error}. Put "
                f"{CIFAR10.filename} from {CIFAR10.url} there, or use data=hf with a local copy in parquet."
            ) from error


def _pixels(part: CIFAR10) -> Tensor:
    return torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()  # [N, H, W, C] -> [N, C, H, W]
