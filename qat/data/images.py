"""Image batches: a dataset that answers a whole batch of rows at once, as (images, labels).

    read(rows) -> uint8 [N, 3, H, W]  ->  augment  ->  normalise  ->  (float32 [N, 3, H, W], int64 [N])

Random draws are a pure function of (seed, epoch, first row of the batch): the same with any number of workers, after a
resume, and whatever else moves the global generator, which is left as it was found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from qat.data.normalization import CHANNELS, Normalization
from qat.data.sampler import Draw
from qat.data.streams import Stream, stream_seed
from qat.errors import DataError


class Reader(Protocol):
    """Where pixels come from."""

    def __call__(self, rows: list[int]) -> Tensor:
        """The pixels of `rows`, uint8 [N, 3, H, W]; draws, if any, from torch's global generator."""
        ...


class InMemory:
    """A reader over pixels that are already there, uint8 [N, 3, H, W]."""

    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels

    def __call__(self, rows: list[int]) -> Tensor:
        """The pixels of `rows`."""
        return self.pixels[rows]


class ImageBatches(Dataset[tuple[Tensor, Tensor]]):
    """Rows of a reader with their labels.

    Args:
        read: Where the pixels come from.
        labels: The class of every row, int64 [rows].
        normalization: Applied last.
        augment: Applied to the uint8 batch, before normalization.
        seed: The run seed of random draws in `read` and `augment`. Without one nothing may be random.
    """

    def __init__(
        self,
        read: Reader,
        labels: Tensor,
        *,
        normalization: Normalization,
        augment: Callable[[Tensor], Tensor] | None = None,
        seed: int | None = None,
    ) -> None:
        self.labels = labels
        self._read = read
        self._normalization = normalization
        self._augment = augment
        self._seed = seed

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.labels)

    def __getitem__(self, key: int | Draw) -> tuple[Tensor, Tensor]:
        """One image, [3, H, W], and its label, []."""
        images, labels = self.__getitems__([key])
        return images[0], labels[0]

    def __getitems__(self, keys: Sequence[int | Draw]) -> tuple[Tensor, Tensor]:
        """The batch of `keys`; a plain row number stands for its draw in epoch 0."""
        draws = [key if isinstance(key, Draw) else Draw(key, 0) for key in keys]
        rows, first = [draw.row for draw in draws], draws[0]
        if self._seed is None:
            pixels = self._read(rows)
        else:
            with torch.random.fork_rng(devices=[]):  # the accelerators' generators draw nothing here
                torch.default_generator.manual_seed(
                    stream_seed(Stream.AUGMENTATION, self._seed, first.epoch, first.row)
                )
                pixels = self._read(rows)
                if self._augment is not None:
                    pixels = self._augment(pixels)
        return self._normalization(pixels), self.labels[rows]


def as_batch(batch: Any) -> Any:
    """The collate function of a loader over `ImageBatches`, whose batches come ready made."""
    return batch


@contextmanager
def decoding(where: str) -> Iterator[None]:
    """Turn whatever an image decoder raises into a `DataError` that names the image.

    Nothing but the decoder belongs into it: what comes after may fail for reasons that are not the image's.

    Args:
        where: The file or the row, as the reader of the message would look for it.
    """
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # Pillow's decoders raise OSError, ValueError, SyntaxError, struct.error, EOFError ...
        raise DataError(
            f"{where} does not decode as an image ({type(error).__name__}: {error}). Replace it or take it out."
        ) from error


def rgb(image: Image.Image) -> Image.Image:
    """`image` in three channels: grey is repeated, transparency dropped, palettes looked up."""
    return image if image.mode == "RGB" else image.convert("RGB")


def check_labels(labels: Tensor, num_classes: int, where: str) -> Tensor:
    """`labels`, int64 [N], if there is at least one and all are classes.

    Raises:
        DataError: The split `where` is empty or has a label outside 0 .. num_classes - 1.
    """
    if len(labels) == 0:
        raise DataError(f"{where} is empty: need at least one image")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        row = int(((labels < 0) | (labels >= num_classes)).nonzero()[0])
        hint = " (-1 marks a split published without labels: choose another one)" if low == -1 else ""
        raise DataError(
            f"{where} has label {int(labels[row])} in row {row}, need 0 <= label < {num_classes} classes{hint}"
        )
    return labels


def input_shape(height: int, width: int) -> tuple[int, int, int]:
    """(C, H, W) of one image."""
    return CHANNELS, height, width
