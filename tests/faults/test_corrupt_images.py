"""A corrupt image at any index: named, or left out and counted with `skip_corrupt`."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from qat.data import ImageFolderData
from qat.errors import DataError

COUNT = 3  # images of each class


def folder(root: Path) -> Path:
    for split in ("train", "val"):
        for label, name in enumerate(("cat", "dog")):
            (root / split / name).mkdir(parents=True)
            for i in range(COUNT):
                Image.new("RGB", (16, 16), (40 * i, 100 * label, 7)).save(root / split / name / f"{i}.png")
    return root


def spoil(path: Path) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


def data(root: Path, **options) -> ImageFolderData:
    found = ImageFolderData(root=root, batch_size=4, image_size=8, **options)
    found.setup()
    return found


@pytest.mark.parametrize("name", ["cat/0.png", "cat/2.png", "dog/1.png"])
def test_it_is_named(tmp_path, name):
    bad = spoil(folder(tmp_path) / "val" / name)
    with pytest.raises(
        DataError, match=re.escape(str(bad)) + " does not decode as an image .*Replace it or take it out"
    ):
        list(data(tmp_path).val_dataloader())


@pytest.mark.parametrize("name", ["cat/0.png", "cat/2.png", "dog/1.png"])
def test_it_is_left_out_and_counted(tmp_path, name, caplog):
    bad = folder(tmp_path) / "val" / name
    whole = torch.cat([images for images, _ in data(tmp_path).val_dataloader()])
    spoil(bad)
    with caplog.at_level(logging.WARNING):
        batches = list(data(tmp_path, skip_corrupt=True).val_dataloader())
    assert f"left out 1 images that do not decode: {bad}" in caplog.text
    index = COUNT * name.startswith("dog") + int(bad.stem)
    rest = [i for i in range(2 * COUNT) if i != index]
    assert torch.equal(torch.cat([images for images, _ in batches]), whole[rest])
    assert torch.cat([labels for _, labels in batches]).tolist() == [i // COUNT for i in rest]


def test_a_split_of_nothing_else_is_empty(tmp_path):
    for path in (folder(tmp_path) / "val").rglob("*.png"):
        spoil(path)
    with pytest.raises(DataError, match="the validation split is empty"):
        data(tmp_path, skip_corrupt=True)


def trained_on(found: ImageFolderData) -> list[int]:
    return sorted(int(label) for _, labels in found.train_dataloader() for label in labels)


@pytest.mark.parametrize("workers", [0, 1])
def test_in_training_it_is_named(tmp_path, workers):
    bad = spoil(folder(tmp_path) / "train" / "dog" / "1.png")
    with pytest.raises(DataError, match=re.escape(str(bad)) + " does not decode as an image"):
        trained_on(data(tmp_path, num_workers=workers))


def test_in_training_it_is_left_out_and_counted(tmp_path, caplog):
    folder(tmp_path)
    for name in ("cat/0.png", "dog/1.png"):
        spoil(tmp_path / "train" / name)
    with caplog.at_level(logging.WARNING):
        found = data(tmp_path, skip_corrupt=True)
    assert "left out 2 images that do not decode" in caplog.text
    assert trained_on(found) == [0, 0, 1, 1]
    assert sum(len(labels) for _, labels in found.calibration_dataloader()) == 4
