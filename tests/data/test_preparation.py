from __future__ import annotations

import pytest
import torch

from qat.data import ImageFolderData
from qat.data.digits import Digits
from qat.data.hf import HuggingFaceData
from qat.data.preparation import preparation


def test_folder_of_pictures(image_root):
    data = ImageFolderData(root=image_root, image_size=16, resize_size=20, interpolation="bicubic", mean=[0.5] * 3)
    data.setup()
    about = preparation(data)
    assert about is not None
    assert (about["size"], about["resize"], about["interpolation"]) == ([16, 16], 20, "bicubic")
    assert (about["mean"], about["classes"]) == ([0.5] * 3, ["cat", "dog"])


def test_pictures_that_have_their_size_already():
    data = Digits(image_size=8)
    data.setup()
    about = preparation(data)
    assert about is not None
    assert (about["size"], about["resize"], about["interpolation"]) == ([8, 8], None, "bilinear")
    white = torch.full((1, 3, 8, 8), 255, dtype=torch.uint8)
    expected = (1 - torch.tensor(about["mean"])) / torch.tensor(about["std"])
    torch.testing.assert_close(data.normalization(white)[0, :, 0, 0], expected)


@pytest.mark.parametrize(
    ("given", "shorter"), [({}, None), ({"image_size": 32}, 32), ({"image_size": 32, "resize_size": 40}, 40)]
)
def test_shorter_side_of_a_hub_data_set(given, shorter):
    assert HuggingFaceData(path="nowhere", **given).resize_size == shorter


def test_data_that_do_not_say():
    data = Digits()
    del data.normalization
    assert preparation(data) is None
