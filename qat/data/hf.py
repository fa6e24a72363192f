"""Hugging Face data: an image data set by its hub name, or from local parquet files; needs the extra `hf`.

    path                          splits
    uoft-cs/cifar10               as published
    folder with *.parquet         by file name: train*.parquet with validation*.parquet or test*.parquet
    file.parquet                  one; take slices of it, `train[:80%]` and `train[80%:]`

Images are decoded when they are first asked for; small ones are kept as pixels, so that an epoch decodes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from qat.data.augmentation import Augmentation
from qat.data.base import ImageData, Splits
from qat.data.checks import at_least, member
from qat.data.evaluation import Interpolation, resize_and_crop
from qat.data.images import ImageBatches, decoding, input_shape, rgb
from qat.data.normalization import CHANNELS, Normalization
from qat.data.table import DECODER, Table, datasets
from qat.errors import ConfigError, DataError

VAL_SPLITS = ("validation", "valid", "val", "test")  # in order of preference: a published test split may lack labels
IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels")
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


class RowReader:
    """Decodes the images of a split.

    Args:
        table: The split.
        column: Its images.
        size: Height and width of every image.
        resize: Brings images to `size`; None takes those that have it.
        keep: Decode every image once only and keep it, as uint8 pixels.
    """

    def __init__(
        self,
        table: Table,
        column: str,
        *,
        size: tuple[int, int],
        resize: Callable[[Image.Image], Tensor] | None,
        keep: bool,
    ) -> None:
        self._table = table
        self._column = column
        self._cells = table.encoded(column)
        self._size = size
        self._transform = resize or v2.PILToTensor()
        self._known = np.zeros(len(table.rows), dtype=bool)
        self._kept = torch.empty((len(table.rows) if keep else 0, CHANNELS, *size), dtype=torch.uint8)

    def __call__(self, rows: list[int]) -> Tensor:
        """The pixels of `rows`, uint8 [N, 3, H, W]."""
        if not len(self._kept):
            return self._decode(rows)
        unknown = [row for row in rows if not self._known[row]]
        if unknown:
            self._kept[unknown] = self._decode(unknown)
            self._known[unknown] = True
        return self._kept[rows]

    def _decode(self, rows: list[int]) -> Tensor:
        cells = self._cells[rows][self._column]
        return torch.stack([self._decode_one(row, cell) for row, cell in zip(rows, cells, strict=True)])

    def _decode_one(self, row: int, cell: dict[str, Any]) -> Tensor:
        where = f"row {row} of {self._table.where}"
        with decoding(where):
            image = rgb(DECODER.decode_example(cell))
        pixels: Tensor = self._transform(image)
        if tuple(pixels.shape[1:]) != self._size:
            raise DataError(
                f"{where} is {_by(pixels.shape[1:])}, the first training image {_by(self._size)} pixels: set "
                "data.image_size, to which all of them are resized"
            )
        return pixels


class HuggingFaceData(ImageData):
    """A Hugging Face image data set.

    Args:
        path: Hub name, or a local folder or file of parquet.
        name: Configuration of a hub data set that has several.
        train_split: Training rows; a slice such as `train[:80%]` too.
        val_split: Held-out rows; None takes the first of validation, valid, val, test that there is.
        image_column: None takes the only column of images, or the one named image or img.
        label_column: None takes the column named label or labels, or the only one with class names.
        batch_size: Images in a batch.
        num_workers: Processes that decode; with workers nothing is kept between epochs.
        seed: Order and augmentation of training images.
        image_size: Height and width that images are resized and cut to; None is their own, which must be one.
        resize_size: Shorter side before the centre is cut out; None is `image_size`.
        interpolation: Of resizing: "nearest", "bilinear" or "bicubic"; None is bilinear.
        augmentation: "none", "crop" (an eighth of the size as padding) or "crop_flip".
        mean: Of each channel, in 0 .. 1; None is ImageNet's.
        std: Of each channel, in 0 .. 1; None is ImageNet's.
        keep_mb: Decoded images are kept in memory if all of them need no more than this; 0 never keeps them.
        cache_dir: Where the `datasets` package keeps its files; None is its own choice.
    """

    def __init__(
        self,
        *,
        path: str | Path,
        name: str | None = None,
        train_split: str = "train",
        val_split: str | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
        batch_size: int = 128,
        num_workers: int = 0,
        seed: int = 0,
        image_size: int | None = None,
        resize_size: int | None = None,
        interpolation: str | None = None,
        augmentation: str = Augmentation.CROP_FLIP,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        keep_mb: int = 1024,
        cache_dir: str | Path | None = None,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed)
        self.path = str(path)
        self.name = name
        self.train_split = train_split
        self.val_split = val_split
        self.image_column = image_column
        self.label_column = label_column
        self.image_size = None if image_size is None else at_least("image_size", image_size, 1)
        self.interpolation = member(Interpolation, "interpolation", interpolation or Interpolation.BILINEAR)
        if self.image_size is None and resize_size is not None:
            raise ConfigError(f"data.resize_size={resize_size} has no effect without data.image_size; give both")
        self._resize: Callable[[Image.Image], Tensor] | None = None
        self.resize_size: int | None = None
        if self.image_size is not None:
            self.resize_size = self.image_size if resize_size is None else at_least("resize_size", resize_size, 1)
            self._resize = resize_and_crop(self.image_size, self.resize_size, self.interpolation)
        self.augmentation = member(Augmentation, "augmentation", augmentation)
        self.normalization = Normalization.of(mean, std)
        self.keep_mb = at_least("keep_mb", keep_mb, 0)
        self.cache_dir = None if cache_dir is None else str(Path(cache_dir).expanduser())

    def load(self) -> Splits:
        """Fetch the tables, read the labels, and decode one image for its size."""
        builder = self._prepared()
        train = self._table(builder, self.train_split)
        val = self._table(builder, self.val_split or self._find_val_split(builder))
        image = self._find_image_column(train)
        label = self._find_label_column(train)
        labels = train.labels(label)
        class_names = train.class_names(label, labels)
        height, width = size = (self.image_size, self.image_size) if self.image_size else train.native_size(image)

        needed = (len(train.rows) + len(val.rows)) * CHANNELS * height * width
        # each worker would keep a copy of its own
        keep = self.num_workers == 0 and needed <= self.keep_mb * 2**20
        readers = [RowReader(table, image, size=size, resize=self._resize, keep=keep) for table in (train, val)]
        return Splits(
            train=ImageBatches(
                readers[0], labels, normalization=self.normalization, augment=self.augmentation, seed=self.seed
            ),
            calibration=ImageBatches(readers[0], labels, normalization=self.normalization),
            val=ImageBatches(readers[1], val.labels(label), normalization=self.normalization),
            class_names=class_names,
            input_shape=input_shape(height, width),
        )

    def _prepared(self) -> datasets.DatasetBuilder:
        """The data set in Arrow files, in the cache of the `datasets` package."""
        local = Path(self.path).expanduser()
        options: dict[str, Any] = {"name": self.name, "cache_dir": self.cache_dir}
        if local.is_file():
            source, options["data_files"] = "parquet", str(local)
        elif local.is_dir() and self.path:
            source = str(local)
        elif HUB_NAME.fullmatch(self.path) and local.suffix != ".parquet":
            source = self.path
        else:
            raise DataError(
                f"data.path: no such file or folder {self.path!r}, and not a name on the Hugging Face hub either "
                "(owner/name)"
            )
        try:
            builder = datasets.load_dataset_builder(source, **options)
            builder.download_and_prepare()
        # no such data set, no network, no data files, a file that is not parquet
        except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
            hint = "" if local.exists() else ". It is no local file or folder either"
            raise DataError(f"data.path={self.path} cannot be read ({type(error).__name__}: {error}){hint}") from error
        return builder

    def _table(self, builder: datasets.DatasetBuilder, split: str) -> Table:
        where = f"split {split!r} of {self.path}"
        known = builder.info.splits
        if split in known and not known[split].num_examples:
            raise DataError(f"{where} is empty: need at least one image")
        try:
            return Table(rows=builder.as_dataset(split), where=where)
        except ValueError as error:  # no such split, or a slice that is not well formed or holds no rows
            raise DataError(f"{where} cannot be taken ({error}). Splits: {', '.join(known)}") from error

    def _find_val_split(self, builder: datasets.DatasetBuilder) -> str:
        known = builder.info.splits
        for split in VAL_SPLITS:
            if split in known and split != self.train_split:
                return split
        raise DataError(
            f"{self.path} has the splits {', '.join(known)}, none of {', '.join(VAL_SPLITS)}: set data.val_split, or "
            "hold out a part of the training split with data.train_split='train[:80%]' data.val_split='train[80%:]'"
        )

    def _find_image_column(self, table: Table) -> str:
        if self.image_column is not None:
            return table.require(self.image_column, "image_column")
        features = table.rows.features
        images = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
        named = [column for column in IMAGE_COLUMNS if column in features]
        return _choose(images if len(images) == 1 else named, table, "image_column")

    def _find_label_column(self, table: Table) -> str:
        if self.label_column is not None:
            return table.require(self.label_column, "label_column")
        features = table.rows.features
        classes = [column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
        named = [column for column in LABEL_COLUMNS if column in features]
        return _choose(named or (classes if len(classes) == 1 else []), table, "label_column")


def _choose(candidates: list[str], table: Table, key: str) -> str:
    if not candidates:
        known = ", ".join(table.rows.column_names)
        raise DataError(f"{table.where}: cannot tell which column is meant, set data.{key} to one of: {known}")
    return candidates[0]


def _by(size: Sequence[int]) -> str:
    return " x ".join(str(side) for side in size)
