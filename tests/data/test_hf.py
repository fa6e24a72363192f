from __future__ import annotations

import importlib
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from qat.errors import ConfigError, DataError

datasets = pytest.importorskip("datasets")  # an extra

from qat.data.hf import HuggingFaceData  # noqa: E402  (after the check that it can be imported)

NAMES = ["cat", "dog", "bird"]
PIXELS = {"mean": [0, 0, 0], "std": [1, 1, 1]}


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def rows(picture: Callable[..., Image.Image]) -> Callable[..., dict[str, list[Any]]]:
    """Columns img and label: `rows(count, first)`, square images of 16 pixels."""

    def make(count: int, first: int = 0, size: tuple[int, int] = (16, 16)) -> dict[str, list[Any]]:
        cells = [{"bytes": png(picture(first + row, size)), "path": None} for row in range(count)]
        return {"img": cells, "label": [row % len(NAMES) for row in range(count)]}

    return make


@pytest.fixture
def folder(tmp_path: Path, rows: Callable[..., dict[str, list[Any]]]) -> Path:
    """A data set of 9 training and 6 test rows in parquet."""
    return write(tmp_path / "pets", train=rows(9), test=rows(6, first=100))


def write(folder: Path, *, label: Any = None, image: Any = None, **splits: dict[str, list[Any]]) -> Path:
    features = datasets.Features({"img": image or datasets.Image(), "label": label or datasets.ClassLabel(names=NAMES)})
    folder.mkdir(exist_ok=True)
    for name, columns in splits.items():
        datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / f"{name}.parquet")
    return folder


def ready(path: Path, **kwargs: Any) -> HuggingFaceData:
    cache = (path if path.is_dir() else path.parent).parent / "cache"
    data = HuggingFaceData(path=path, cache_dir=cache, batch_size=4, **kwargs)
    data.setup()
    return data


def images_and_labels(loader) -> tuple[torch.Tensor, list[int]]:
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels).tolist()


def test_facts(folder: Path):
    data = ready(folder)
    assert data.class_names == tuple(NAMES)
    assert data.input_shape == (3, 16, 16)
    assert (len(data.splits.train), len(data.splits.val)) == (9, 6)


@pytest.mark.parametrize("keep_mb", [0, 1])
def test_images_are_those_of_the_file_in_every_epoch(folder: Path, picture: Callable[..., Image.Image], keep_mb: int):
    data = ready(folder, keep_mb=keep_mb, **PIXELS)
    expected = torch.stack([torch.from_numpy(np.array(picture(100 + row, (16, 16)))) for row in range(6)])
    for _ in range(2):
        images, labels = images_and_labels(data.val_dataloader())
        torch.testing.assert_close(images, expected.permute(0, 3, 1, 2) / 255)
        assert labels == [0, 1, 2, 0, 1, 2]


def test_kept_images_are_decoded_once(folder: Path, monkeypatch: pytest.MonkeyPatch):
    decoded = []
    decode = datasets.Image.decode_example
    monkeypatch.setattr(datasets.Image, "decode_example", lambda *args: decoded.append(1) or decode(*args))
    data = ready(folder)
    size_probe = len(decoded)
    for _ in range(3):
        list(data.train_dataloader())
        list(data.calibration_dataloader())
    assert len(decoded) - size_probe == 9


def test_training_is_augmented_and_calibration_is_not(folder: Path):
    augmented, plain = ready(folder), ready(folder, augmentation="none")
    assert not torch.equal(*(images_and_labels(data.train_dataloader())[0] for data in (augmented, plain)))
    assert torch.equal(*(images_and_labels(data.calibration_dataloader())[0] for data in (augmented, plain)))


def test_resize_then_centre(folder: Path, picture: Callable[..., Image.Image]):
    data = ready(folder, image_size=8, resize_size=12, interpolation="bicubic", **PIXELS)
    images, _ = images_and_labels(data.val_dataloader())
    small = np.asarray(picture(100, (16, 16)).resize((12, 12), Image.Resampling.BICUBIC))
    torch.testing.assert_close(images[0], torch.from_numpy(small[2:10, 2:10].copy()).permute(2, 0, 1) / 255)


def test_resize_size_alone_has_no_effect(folder: Path):
    with pytest.raises(ConfigError, match=r"data\.resize_size=12 has no effect without data\.image_size; give both"):
        ready(folder, resize_size=12)


def test_image_size_makes_one_size_of_many(tmp_path: Path, rows: Callable[..., dict[str, list[Any]]]):
    mixed = {key: a + b for (key, a), b in zip(rows(3).items(), rows(3, size=(30, 20)).values(), strict=True)}
    folder = write(tmp_path / "mixed", train=mixed, test=mixed)
    assert images_and_labels(ready(folder, image_size=12).val_dataloader())[0].shape == (6, 3, 12, 12)
    with pytest.raises(DataError, match=r"row 3 of split 'test'.* is 20 x 30, .* 16 x 16 pixels: set data\.image_size"):
        list(ready(folder).val_dataloader())


def test_validation_is_preferred_to_test(folder: Path, rows: Callable[..., dict[str, list[Any]]]):
    write(folder, validation=rows(3))
    assert len(ready(folder).splits.val) == 3
    assert len(ready(folder, val_split="test").splits.val) == 6


def test_one_file_is_sliced(folder: Path):
    data = ready(folder / "train.parquet", train_split="train[:6]", val_split="train[6:]")
    assert (len(data.splits.train), len(data.splits.val)) == (6, 3)


def test_one_file_without_slices(folder: Path):
    with pytest.raises(DataError, match=r"has the splits train, none of validation.*data\.train_split='train\[:80%\]'"):
        ready(folder / "train.parquet")


def test_plain_integers_are_labels(tmp_path: Path, rows: Callable[..., dict[str, list[Any]]]):
    data = ready(write(tmp_path / "plain", label=datasets.Value("int32"), train=rows(6), test=rows(3)))
    assert data.class_names == ("0", "1", "2")


@pytest.mark.parametrize("cell", ["bytes", "struct"])
def test_images_of_other_programs(tmp_path: Path, rows: Callable[..., dict[str, list[Any]]], cell: str):
    """Parquet without Hugging Face's metadata: bytes alone, or bytes with a path."""
    columns, image = rows(3), {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    if cell == "bytes":
        columns["img"], image = [img["bytes"] for img in columns["img"]], image["bytes"]
    label = datasets.Value("int64")
    plain, theirs = (
        write(tmp_path / "plain", label=label, train=rows(3), test=rows(3)),
        write(tmp_path / "theirs", label=label, image=image, train=columns, test=columns),
    )
    images = [images_and_labels(ready(folder).val_dataloader())[0] for folder in (plain, theirs)]
    assert torch.equal(*images)


def test_grey_images_become_rgb(tmp_path: Path, picture: Callable[..., Image.Image]):
    grey = {"img": [{"bytes": png(picture(0).convert("L")), "path": None}], "label": [0]}
    assert ready(write(tmp_path / "grey", train=grey, test=grey)).input_shape == (3, 30, 40)


def test_missing_path(tmp_path: Path):
    with pytest.raises(DataError, match=r"data\.path: no such file or folder '.*nowhere', and not a name on"):
        ready(tmp_path / "nowhere")


def test_hub_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def unplugged(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach 'owner/pets' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset_builder", unplugged)
    data = HuggingFaceData(path="owner/pets", cache_dir=tmp_path)
    with pytest.raises(DataError, match=r"data\.path=owner/pets cannot be read .*on the Hub\)\. It is no local file"):
        data.setup()


def test_folder_without_data(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"data\.path=.*empty.* cannot be read \(EmptyDatasetError"):
        ready(tmp_path / "empty")


def test_file_that_is_no_parquet(tmp_path: Path):
    (tmp_path / "train.parquet").write_text("not parquet")
    with pytest.raises(DataError, match=r"train\.parquet .*cannot be read"):
        ready(tmp_path / "train.parquet")


def test_unknown_split(folder: Path):
    with pytest.raises(DataError, match=r"split 'dev' of .* cannot be taken \(Unknown split.*Splits: train, test"):
        ready(folder, val_split="dev")


def test_empty_slice(folder: Path):
    with pytest.raises(DataError, match=r"split 'train\[9:\]' of .* cannot be taken"):
        ready(folder, val_split="train[9:]")


@pytest.mark.parametrize("key", ["image_column", "label_column"])
def test_unknown_column(folder: Path, key: str):
    with pytest.raises(DataError, match=rf"no column 'photo' for data\.{key}\. Columns: img, label"):
        ready(folder, **{key: "photo"})


def test_column_that_holds_no_images(folder: Path):
    with pytest.raises(
        DataError, match=r"column 'label' of split 'train' .* holds ClassLabel.*, not images: set data\.image_column"
    ):
        ready(folder, image_column="label")


def test_column_that_holds_no_integers(folder: Path):
    with pytest.raises(DataError, match=r"column 'img' of split 'train'.* need integers or a ClassLabel"):
        ready(folder, label_column="img")


def test_labels_that_are_text(tmp_path: Path, rows: Callable[..., dict[str, list[Any]]]):
    text = {**rows(3), "label": NAMES}
    with pytest.raises(DataError, match=r"need integers or a ClassLabel.*class_encode_column\('label'\)"):
        ready(write(tmp_path / "text", label=datasets.Value("string"), train=text, test=text))


def test_columns_that_cannot_be_guessed(tmp_path: Path, rows: Callable[..., dict[str, list[Any]]]):
    (tmp_path / "odd").mkdir()
    for split in ("train", "test"):
        table = datasets.Dataset.from_dict({"a": [1, 2], "b": [3, 4]})
        table.to_parquet(tmp_path / "odd" / f"{split}.parquet")
    with pytest.raises(DataError, match=r"set data\.image_column to one of: a, b"):
        ready(tmp_path / "odd")


def test_no_rows(tmp_path: Path, rows: Callable[..., dict[str, list[Any]]]):
    empty = {"img": [], "label": []}
    with pytest.raises(DataError, match=r"split 'train' of .*is empty: need at least one image"):
        ready(write(tmp_path / "none", train=empty, test=rows(3)))
    with pytest.raises(DataError, match=r"split 'test' of .*is empty: need at least one image"):
        ready(write(tmp_path / "half", train=rows(3), test=empty))


def test_labels_with_a_gap(tmp_path: Path, rows: Callable[..., dict[str, list[Any]]]):
    gap = {**rows(3), "label": [1, 2, 4]}
    with pytest.raises(DataError, match=r"must be 0, 1, 2 \.\.\. without a gap, found \[1, 2, 4\]"):
        ready(write(tmp_path / "gap", label=datasets.Value("int64"), train=gap, test=gap))


def test_rows_without_labels(tmp_path: Path, rows: Callable[..., dict[str, list[Any]]]):
    with pytest.raises(DataError, match=r"has 1 rows without a label"):
        ready(write(tmp_path / "null", train={**rows(3), "label": [0, None, 1]}, test=rows(3)))
    with pytest.raises(DataError, match="-1 marks a split published without labels"):
        ready(write(tmp_path / "hidden", train=rows(3), test={**rows(3), "label": [-1, -1, -1]}))


def test_an_image_that_does_not_decode(tmp_path: Path, rows: Callable[..., dict[str, list[Any]]]):
    broken = rows(3)
    broken["img"][1] = {"bytes": b"not an image", "path": None}
    broken["img"][2] = None
    data = ready(write(tmp_path / "broken", train=rows(3), test=broken))
    for row, reason in ((1, "UnidentifiedImageError"), (2, "AttributeError")):
        with pytest.raises(DataError, match=rf"row {row} of split 'test' .* does not decode .*{reason}"):
            _ = data.splits.val[row]


def test_without_the_package(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    for name in ("qat.data.hf", "qat.data.table"):
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ConfigError, match=r"uv sync --extra hf.*pip install datasets"):
        importlib.import_module("qat.data.hf")
    importlib.reload(importlib.import_module("qat.data"))  # does without
