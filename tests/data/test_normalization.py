from __future__ import annotations

import pytest
import torch
from torchvision.transforms.v2 import functional as F

from qat.data.normalization import IMAGENET_MEAN, IMAGENET_STD, Normalization
from qat.errors import ConfigError

ROUNDING = 1e-6  # one multiply-add instead of two divisions and a subtraction, on values up to 2.7


def test_normalization_is_torchvisions():
    pixels = torch.arange(256, dtype=torch.uint8).repeat(2, 3, 1, 1)  # every value in every channel
    ours = Normalization(mean=IMAGENET_MEAN, std=IMAGENET_STD)(pixels)
    theirs = F.normalize(F.to_dtype(pixels, torch.float32, scale=True), list(IMAGENET_MEAN), list(IMAGENET_STD))
    torch.testing.assert_close(ours, theirs, atol=ROUNDING, rtol=0)


def test_the_result_is_contiguous():
    pixels = torch.zeros(2, 8, 8, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    assert Normalization(mean=[0, 0, 0], std=[1, 1, 1])(pixels).is_contiguous()


@pytest.mark.parametrize("mean", [[0.5], [0.5, 0.5, 0.5, 0.5], 0.5, ["a", "b", "c"], None])
def test_mean_must_be_three_numbers(mean: object):
    with pytest.raises(ConfigError, match=r"data\.mean must be 3 numbers"):
        Normalization(mean=mean, std=[1, 1, 1])  # type: ignore[arg-type]


def test_std_must_be_positive():
    with pytest.raises(ConfigError, match=r"data\.std must be > 0 in every channel, got \[1\.0, 0\.0, 1\.0\]"):
        Normalization(mean=[0, 0, 0], std=[1, 0, 1])
