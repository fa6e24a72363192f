from __future__ import annotations

from collections import Counter
from pathlib import Path

import hydra
import pytest
import torch
from omegaconf import OmegaConf
from sklearn.datasets import load_digits

from qat.data import Digits
from qat.errors import ConfigError

CONF = Path(__file__).parents[2] / "conf" / "data" / "digits.yaml"


@pytest.fixture(scope="module")
def digits() -> Digits:
    data = Digits()
    data.setup()
    return data


def images_and_labels(loader) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


def test_facts(digits: Digits):
    assert digits.num_classes == 10
    assert digits.class_names == tuple("0123456789")
    assert digits.input_shape == (3, 32, 32)
    assert len(digits.splits.train) == 1437
    assert len(digits.splits.val) == 360


def test_the_split_is_stratified(digits: Digits):
    train, val = digits.splits.train.labels, digits.splits.val.labels
    expected = (train.bincount() + val.bincount()) * 0.2
    assert ((val.bincount() - expected).abs() < 1).all()


def test_the_split_depends_on_the_split_seed_only(digits: Digits):
    def val(**seeds: int) -> torch.Tensor:
        data = Digits(**seeds)
        data.setup()
        return images_and_labels(data.val_dataloader())[0]

    default = images_and_labels(digits.val_dataloader())[0]
    assert torch.equal(val(seed=1), default)
    assert not torch.equal(val(split_seed=1), default)


def test_two_splits_hold_the_same_images(digits: Digits):
    def all_images(data: Digits) -> Counter[bytes]:
        loaders = (data.calibration_dataloader(), data.val_dataloader())
        return Counter(image.numpy().tobytes() for loader in loaders for images, _ in loader for image in images)

    other = Digits(split_seed=1)
    other.setup()
    assert all_images(digits) == all_images(other)  # none is lost, none is in both


def test_images_are_normalised_float32(digits: Digits):
    images, labels = images_and_labels(digits.calibration_dataloader())
    assert images.shape == (1437, 3, 32, 32)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert images.mean().abs() < 0.01
    assert (images.std() - 1).abs() < 0.02
    assert torch.equal(images[:, 0], images[:, 2])


def test_enlarging_keeps_the_ink():
    data = Digits(image_size=8, mean=[0, 0, 0], std=[1, 1, 1])
    data.setup()
    images, labels = images_and_labels(data.val_dataloader())
    ink = (images[:, 0] * 16).round().flatten(1)  # back to 0 .. 16
    originals = {
        (label, row.tobytes()) for row, label in zip(*load_digits(return_X_y=True), strict=True)
    }  # the 8 x 8 images and their labels, bit by bit
    assert all(
        (int(label), row.double().numpy().tobytes()) in originals for row, label in zip(ink, labels, strict=True)
    )


def test_augmentation_is_off_by_default_and_leaves_calibration_alone(digits: Digits):
    shifted = Digits(augmentation="crop")
    shifted.setup()
    plain, moved = (next(iter(data.train_dataloader())) for data in (digits, shifted))
    assert torch.equal(plain[1], moved[1])
    assert not torch.equal(plain[0], moved[0])
    for calm, other in zip(digits.calibration_dataloader(), shifted.calibration_dataloader(), strict=True):
        assert torch.equal(calm[0], other[0])


def test_the_config_says_what_the_class_defaults_to(digits: Digits):
    data = hydra.utils.instantiate(OmegaConf.create({"seed": 0, "data": OmegaConf.load(CONF)}).data)
    data.setup()
    for (images, labels), (other_images, other_labels) in zip(
        digits.train_dataloader(), data.train_dataloader(), strict=True
    ):
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)


def test_bad_values():
    with pytest.raises(ConfigError, match=r"data\.batch_size must be an integer >= 1, got 0"):
        Digits(batch_size=0)
    with pytest.raises(ConfigError, match=r"unknown data\.augmentation 'flip'.*Known: crop, crop_flip, none"):
        Digits(augmentation="flip")
    with pytest.raises(ConfigError, match=r"data\.image_size must be an integer >= 1, got 0"):
        Digits(image_size=0)
