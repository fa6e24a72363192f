"""Image folder: your own images in ImageNet's layout, read from disk as they are needed.

root/train/CLASS/anything.jpg        train: a random window, resized to image_size, mirrored half of the time
root/val/CLASS/anything.jpg          evaluation: shorter side to resize_size, the centre image_size x image_size
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from qat.data.base import ImageData, Splits
from qat.data.checks import at_least, member
from qat.data.evaluation import Interpolation, resize_and_crop
from qat.data.images import ImageBatches, decoding, input_shape, rgb
from qat.data.normalization import Normalization
from qat.errors import DataError

log = logging.getLogger(__name__)

IMAGE_SIZE = 224  # ImageNet's
LISTED = 5  # names of an error message


class FolderReader:
    """Decodes files and gives them one size.

    Args:
        files: By row.
        transform: From a PIL image to uint8 [3, H, W], the same shape for all.
    """

    def __init__(self, files: Sequence[str], transform: Callable[[Image.Image], Tensor]) -> None:
        self.files = files
        self._transform = transform

    def __call__(self, rows: list[int]) -> Tensor:
        """The pixels of `rows`, uint8 [N, 3, H, W]."""
        return torch.stack([self._decode(self.files[row]) for row in rows])

    def _decode(self, file: str) -> Tensor:
        with decoding(file), Path(file).open("rb") as stream:
            image = rgb(Image.open(stream))
            image.load()  # pixels are read late
        return self._transform(image)


class ImageFolderData(ImageData):
    """Images in class folders under `root/train` and `root/val`.

    Args:
        root: Folder that holds `train` and `val`.
        batch_size: Images in a batch.
        num_workers: Processes that decode; as many as there are cores to spare.
        seed: Order and augmentation of training images.
        image_size: Height and width of what the model sees; None is 224.
        resize_size: Shorter side before the centre is cut out for evaluation; None is 8/7 of `image_size`, which is
            ImageNet's 256 for 224.
        interpolation: Of resizing: "nearest", "bilinear" or "bicubic"; None is bilinear.
        mean: Of each channel, in 0 .. 1; None is ImageNet's.
        std: Of each channel, in 0 .. 1; None is ImageNet's.
        skip_corrupt: Decode every image once at the start, and leave out, count and name those that do not decode;
            otherwise the first one ends the run.
    """

    def __init__(
        self,
        *,
        root: str | Path,
        batch_size: int = 32,
        num_workers: int = 0,
        seed: int = 0,
        image_size: int | None = None,
        resize_size: int | None = None,
        interpolation: str | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        skip_corrupt: bool = False,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed)
        self.root = Path(root).expanduser()
        self.skip_corrupt = skip_corrupt
        self.image_size = at_least("image_size", IMAGE_SIZE if image_size is None else image_size, 1)
        usual = round(self.image_size * 8 / 7)
        self.resize_size = usual if resize_size is None else at_least("resize_size", resize_size, 1)
        self.interpolation = member(Interpolation, "interpolation", interpolation or Interpolation.BILINEAR)
        self._evaluate = resize_and_crop(self.image_size, self.resize_size, self.interpolation)
        self.normalization = Normalization.of(mean, std)

    def load(self) -> Splits:
        """List the files of both splits; none is decoded yet."""
        if not self.root.is_dir():
            raise DataError(f"data.root: no such folder {self.root}. Need a folder with train/ and val/ in it.")
        train, val = self._list("train"), self._list("val")
        if train.classes != val.classes:
            raise DataError(
                f"{self.root}: train and val must have the same class folders; only in train: "
                f"{_names(set(train.classes) - set(val.classes))}; only in val: "
                f"{_names(set(val.classes) - set(train.classes))}. Rename or remove them."
            )
        files, labels = [file for file, _ in train.samples], torch.tensor(train.targets, dtype=torch.int64)
        crop = v2.RandomResizedCrop(self.image_size, interpolation=self.interpolation.mode)
        training = v2.Compose([crop, v2.RandomHorizontalFlip(), v2.PILToTensor()])
        return Splits(
            train=ImageBatches(FolderReader(files, training), labels, normalization=self.normalization, seed=self.seed),
            calibration=ImageBatches(FolderReader(files, self._evaluate), labels, normalization=self.normalization),
            val=ImageBatches(
                FolderReader([file for file, _ in val.samples], self._evaluate),
                torch.tensor(val.targets, dtype=torch.int64),
                normalization=self.normalization,
            ),
            class_names=tuple(train.classes),
            input_shape=input_shape(self.image_size, self.image_size),
        )

    def _list(self, split: str) -> ImageFolder:
        folder = self.root / split
        if not folder.is_dir():
            found = _names(entry.name for entry in self.root.iterdir() if entry.is_dir())
            raise DataError(f"{self.root} has no folder {split}/; need train/ and val/, found {found}")
        try:
            listed = ImageFolder(folder)
        except FileNotFoundError as error:  # torchvision: no class folders, or some of them without images
            raise DataError(
                f"{folder}: {str(error).rstrip('. ')}. Need {split}/CLASS/IMAGE with at least one image in every class."
            ) from error
        if self.skip_corrupt:
            # before there are rows: order, labels and batch sizes stay those of a folder without these files
            corrupt = corrupt_files([file for file, _ in listed.samples])
            if corrupt:
                log.warning("%s: left out %d images that do not decode: %s", folder, len(corrupt), _names(corrupt))
            listed.samples = [(file, label) for file, label in listed.samples if file not in corrupt]
            listed.targets = [label for _, label in listed.samples]
        return listed


def corrupt_files(files: Sequence[str]) -> set[str]:
    """Those that do not decode; as many threads as CPUs, because decoders let go of the interpreter."""

    def decodes(file: str) -> bool:
        try:
            with decoding(file), Path(file).open("rb") as stream:
                rgb(Image.open(stream)).load()
        except DataError:
            return False
        return True

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return {file for file, ok in zip(files, pool.map(decodes, files), strict=True) if not ok}


def _names(names: Iterable[str]) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - LISTED} more" if len(listed) > LISTED else ""
    return ", ".join(listed[:LISTED]) + more if listed else "none"
