from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10

from qat.data import Cifar10
from qat.data.normalization import IMAGENET_MEAN, IMAGENET_STD
from qat.errors import ConfigError, DataError

NAMES = ["airplane", "automobile", "bird"]


@pytest.fixture
def cifar_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CIFAR-10's files with 4 images in each, and torchvision told their digests."""
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    rng = np.random.default_rng(0)

    def write(name: str, content: dict[str, object]) -> str:
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return hashlib.md5(data).hexdigest()

    def batch() -> dict[str, object]:
        return {"data": rng.integers(0, 256, (4, 3072), dtype=np.uint8), "labels": [0, 1, 2, 0]}

    for attribute in ("train_list", "test_list"):
        listed = [[name, write(name, batch())] for name, _ in getattr(CIFAR10, attribute)]
        monkeypatch.setattr(CIFAR10, attribute, listed)
    digest = write("batches.meta", {"label_names": NAMES})
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": digest})
    return tmp_path


def test_images_are_those_of_the_files(cifar_root: Path):
    data = Cifar10(root=cifar_root, download=False, batch_size=3)
    data.setup()
    assert data.class_names == tuple(NAMES)
    assert data.input_shape == (3, 32, 32)
    assert (len(data.splits.train), len(data.splits.val)) == (20, 4)

    stored = pickle.loads((cifar_root / CIFAR10.base_folder / "test_batch").read_bytes())
    pixels = torch.from_numpy(stored["data"]).view(4, 3, 32, 32) / 255
    expected = (pixels - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(3, 1, 1)
    images, labels = (torch.cat(part) for part in zip(*data.val_dataloader(), strict=True))
    torch.testing.assert_close(images, expected)
    assert labels.tolist() == stored["labels"]


def test_training_is_augmented_and_calibration_is_not(cifar_root: Path):
    def first(data: Cifar10, loader: str) -> torch.Tensor:
        data.setup()
        return next(iter(getattr(data, loader)()))[0]

    augmented, plain = (
        Cifar10(root=cifar_root, download=False, augmentation=augmentation) for augmentation in ("crop_flip", "none")
    )
    assert not torch.equal(first(augmented, "train_dataloader"), first(plain, "train_dataloader"))
    assert torch.equal(first(augmented, "calibration_dataloader"), first(plain, "calibration_dataloader"))


def test_prepare_data_downloads_only_what_is_missing(cifar_root: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("there is nothing to download")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", refuse)
    data = Cifar10(root=cifar_root)
    data.prepare_data()
    data.setup()
    assert len(data.splits.train) == 20


def test_missing_files(tmp_path: Path):
    with pytest.raises(DataError, match=r"CIFAR-10 cannot be read from .*download=False.*use data=hf"):
        Cifar10(root=tmp_path, download=False).setup()


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def unplugged(*_: object, **__: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", unplugged)
    with pytest.raises(DataError, match=r"Network is unreachable.*Put cifar-10-python\.tar\.gz"):
        Cifar10(root=tmp_path).prepare_data()


def test_a_file_with_another_digest(cifar_root: Path):
    (cifar_root / CIFAR10.base_folder / "test_batch").write_bytes(b"torn")
    with pytest.raises(DataError, match="not found or corrupted"):
        Cifar10(root=cifar_root, download=False).setup()


def test_bad_values():
    with pytest.raises(ConfigError, match=r"data\.std must be > 0"):
        Cifar10(root="anywhere", std=[0, 0, 0])
