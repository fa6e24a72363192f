from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qat.data import IMAGENET_MEAN, IMAGENET_STD, ImageFolderData, Normalization
from qat.data.image_folder import FolderReader
from qat.errors import ConfigError, DataError

PIXELS = {"mean": [0, 0, 0], "std": [1, 1, 1]}


def ready(root: Path, **kwargs: object) -> ImageFolderData:
    data = ImageFolderData(root=root, image_size=16, batch_size=4, **kwargs)  # type: ignore[arg-type]
    data.setup()
    return data


def test_facts(image_root: Path):
    data = ready(image_root)
    assert data.class_names == ("cat", "dog")
    assert data.num_classes == 2
    assert data.input_shape == (3, 16, 16)
    assert (len(data.splits.train), len(data.splits.val)) == (10, 6)


def test_evaluation_resizes_and_takes_the_centre(image_root: Path):
    images, labels = next(iter(ready(image_root, resize_size=20, **PIXELS).val_dataloader()))
    assert labels.tolist() == [0, 0, 0, 1]
    with Image.open(image_root / "val" / "cat" / "1.png") as image:
        small = np.asarray(image.resize((26, 20), Image.Resampling.BILINEAR))  # 40 x 30, shorter side to 20
    centre = torch.from_numpy(small[2:18, 5:21].copy()).permute(2, 0, 1) / 255
    torch.testing.assert_close(images[1], centre)


def test_interpolation(image_root: Path):
    images, _ = next(iter(ready(image_root, resize_size=20, interpolation="bicubic", **PIXELS).val_dataloader()))
    with Image.open(image_root / "val" / "cat" / "1.png") as image:
        small = np.asarray(image.resize((26, 20), Image.Resampling.BICUBIC))
    centre = torch.from_numpy(small[2:18, 5:21].copy()).permute(2, 0, 1) / 255
    torch.testing.assert_close(images[1], centre)
    with pytest.raises(ConfigError, match=r"unknown data\.interpolation 'bicubik'\. Did you mean bicubic"):
        ImageFolderData(root=image_root, interpolation="bicubik")


def test_the_default_is_imagenets_proportion(image_root: Path):
    data = ImageFolderData(root=image_root)
    assert (data.image_size, data.resize_size, data.interpolation) == (224, 256, "bilinear")
    assert data.normalization == Normalization(mean=IMAGENET_MEAN, std=IMAGENET_STD)
    assert ImageFolderData(root=image_root, image_size=96).resize_size == 110


@pytest.mark.parametrize("num_workers", [0, 1])
def test_training_draws_are_a_function_of_seed_and_epoch(image_root: Path, num_workers: int):
    def epoch(seed: int, number: int, workers: int) -> torch.Tensor:
        loader = ready(image_root, seed=seed, num_workers=workers).train_dataloader()
        loader.sampler.set_epoch(number)  # type: ignore[attr-defined]
        return torch.cat([images for images, _ in loader])

    torch.manual_seed(num_workers)  # of no consequence
    assert torch.equal(epoch(0, 1, num_workers), epoch(0, 1, 0))
    assert not torch.equal(epoch(0, 1, 0), epoch(1, 1, 0))


def test_calibration_is_deterministic_and_not_augmented(image_root: Path):
    def files(loader) -> set[bytes]:
        return {image.numpy().tobytes() for images, _ in loader for image in images}

    data = ready(image_root)
    first, second = (torch.cat([images for images, _ in data.calibration_dataloader()]) for _ in range(2))
    assert torch.equal(first, second)
    # the training images, seen as validation images
    shutil.rmtree(image_root / "val")
    shutil.copytree(image_root / "train", image_root / "val")
    assert files(data.calibration_dataloader()) == files(ready(image_root).val_dataloader())


def test_grey_and_transparent_images_become_rgb(image_root: Path, picture: Callable[..., Image.Image]):
    for split in ("train", "val"):
        picture(1).convert("L").save(image_root / split / "cat" / "grey.png")
        picture(1).convert("RGBA").save(image_root / split / "cat" / "transparent.png")
    assert {images.shape[1:] for images, _ in ready(image_root).val_dataloader()} == {(3, 16, 16)}


def test_missing_root(tmp_path: Path):
    with pytest.raises(DataError, match=r"data\.root: no such folder .*nowhere.*train/ and val/"):
        ready(tmp_path / "nowhere")


def test_missing_split(image_root: Path):
    (image_root / "val").rename(image_root / "valid")
    with pytest.raises(DataError, match="has no folder val/; need train/ and val/, found train, valid"):
        ready(image_root)


def test_split_without_classes(image_root: Path):
    shutil.rmtree(image_root / "val")
    (image_root / "val").mkdir()
    with pytest.raises(DataError, match=r"val: Couldn't find any class folder.*Need val/CLASS/IMAGE"):
        ready(image_root)


def test_class_without_images(image_root: Path):
    for file in (image_root / "train" / "dog").iterdir():
        file.rename(file.with_suffix(".txt"))
    with pytest.raises(DataError, match=r"train: Found no valid file for the classes dog.*at least one image"):
        ready(image_root)


def test_different_classes(image_root: Path):
    (image_root / "val" / "dog").rename(image_root / "val" / "wolf")
    with pytest.raises(DataError, match="only in train: dog; only in val: wolf"):
        ready(image_root)


def test_many_different_classes_are_not_all_listed(image_root: Path):
    for name in "abcdefg":
        shutil.copytree(image_root / "val" / "dog", image_root / "val" / name)
    with pytest.raises(DataError, match="only in train: none; only in val: a, b, c, d, e and 2 more"):
        ready(image_root)


def test_an_image_that_does_not_decode(image_root: Path):
    broken = image_root / "val" / "dog" / "1.png"
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(DataError, match=r"val.dog.1\.png does not decode as an image \(OSError.*take it out"):
        list(ready(image_root).val_dataloader())


def test_what_is_done_with_an_image_may_fail_under_its_own_name(image_root: Path):
    """A bug behind the decoder is no corrupt image."""

    def broken(image: Image.Image) -> torch.Tensor:
        raise TypeError("a bug")

    with pytest.raises(TypeError, match="a bug"):
        FolderReader([str(image_root / "val" / "dog" / "1.png")], broken)([0])


def test_a_file_that_is_no_image(image_root: Path):
    (image_root / "train" / "cat" / "0.png").write_text("not an image")
    with pytest.raises(DataError, match=r"train.cat.0\.png does not decode as an image \(UnidentifiedImageError"):
        list(ready(image_root).train_dataloader())


def test_a_crop_larger_than_the_image(image_root: Path):
    with pytest.raises(ConfigError, match=r"need data\.resize_size >= data\.image_size, got 128 and 224"):
        ImageFolderData(root=image_root, resize_size=128)
