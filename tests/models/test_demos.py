"""The models of the demos: shapes, and what they refuse."""

from __future__ import annotations

import pytest
import torch

from qat.errors import ConfigError
from qat.models import PatchTransformer, RowLSTM
from qat.models.patch_transformer import patches


def test_patches_are_those_of_unfold() -> None:
    x = torch.randn(2, 3, 8, 12)
    unfolded = torch.nn.functional.unfold(x, 4, stride=4).transpose(1, 2)
    assert torch.equal(patches(x, 4), unfolded)


def test_shapes() -> None:
    x = torch.randn(2, 3, 8, 8)
    assert PatchTransformer(7, width=8, depth=1, heads=2)(x).shape == (2, 7)
    assert RowLSTM(7, hidden=8)(x).shape == (2, 7)


def test_sizes_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match=r"need image_size divisible by patch_size, got 8 and 3"):
        PatchTransformer(patch_size=3)
    with pytest.raises(ConfigError, match=r"need width divisible by heads, got 10 and 4"):
        PatchTransformer(width=10)
    with pytest.raises(ConfigError, match=r"images of 16 x 16 have 64 patches of 2, and the model was built for 16"):
        PatchTransformer(width=8, depth=1, heads=2)(torch.randn(1, 3, 16, 16))
    with pytest.raises(ConfigError, match=r"need image_size >= 1, got 0"):
        RowLSTM(image_size=0)
