"""One split of a data set of the `datasets` package, as rows with a column of images and one of labels."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qat.data.images import decoding
from qat.errors import ConfigError, DataError

try:
    import datasets
except ImportError as error:
    raise ConfigError(
        "data=hf needs the package `datasets`: run `uv sync --extra hf` or `pip install datasets`"
    ) from error

INTEGER = re.compile(r"u?int\d+")  # of pyarrow's type names
DECODER = datasets.Image()


@dataclass(frozen=True, kw_only=True)
class Table:
    """One split of a data set.

    Attributes:
        rows: Its rows.
        where: Its name, as the reader of an error message would look for it.
    """

    rows: datasets.Dataset
    where: str

    def require(self, column: str, key: str) -> str:
        """`column`, if there is one."""
        if column not in self.rows.column_names:
            raise DataError(
                f"{self.where} has no column {column!r} for data.{key}. Columns: {', '.join(self.rows.column_names)}"
            )
        return column

    def encoded(self, column: str) -> datasets.Dataset:
        """The images of `column` as {bytes, path}, not decoded."""
        feature = self.rows.features[column]
        stored = isinstance(feature, dict) and {"bytes", "path"} <= feature.keys()  # parquet from another program
        if not (isinstance(feature, datasets.Image) or stored or getattr(feature, "dtype", None) == "binary"):
            raise DataError(f"column {column!r} of {self.where} holds {feature}, not images: set data.image_column")
        return self.rows.select_columns([column]).cast_column(column, datasets.Image(decode=False))

    def native_size(self, column: str) -> tuple[int, int]:
        """(H, W) of the first image."""
        with decoding(f"row 0 of {self.where}"):
            image = DECODER.decode_example(self.encoded(column)[0][column])
        return image.height, image.width

    def labels(self, column: str) -> Tensor:
        """The integers of `column`, int64 [rows]."""
        feature = self.rows.features[self.require(column, "label_column")]
        if not isinstance(feature, datasets.ClassLabel) and not INTEGER.fullmatch(str(getattr(feature, "dtype", ""))):
            raise DataError(
                f"column {column!r} of {self.where} holds {feature}, need integers or a ClassLabel: set "
                f"data.label_column, or store it with class_encode_column({column!r})"
            )
        values = self.rows.select_columns([column]).with_format("arrow")[:].column(column)
        if values.null_count:
            raise DataError(f"{self.where} has {values.null_count} rows without a label in column {column!r}")
        return torch.from_numpy(values.to_numpy().astype(np.int64))

    def class_names(self, column: str, labels: Tensor) -> tuple[str, ...]:
        """The names that `column` carries; without names the numbers, which must leave no gap."""
        feature = self.rows.features[column]
        if isinstance(feature, datasets.ClassLabel):
            return tuple(feature.names)
        found = labels.unique().tolist()
        if found != list(range(len(found))):
            raise DataError(
                f"labels of {self.where} must be 0, 1, 2 ... without a gap, found {found[:10]}: number them anew or "
                "store them as a ClassLabel"
            )
        return tuple(str(label) for label in found)
