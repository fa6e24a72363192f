from __future__ import annotations

import pytest
import torch

from qat.errors import ConfigError
from qat.observers import MinMax
from qat.quantizers import LSQPlus
from qat.spec import IntSpec


def test_a_symmetric_grid_has_no_offset():
    with pytest.raises(ConfigError, match=r"LSQPlus trains an offset, and the grid int4.* has none; use LSQ, or"):
        LSQPlus(IntSpec(bits=4), MinMax)


def test_the_offset_is_trained_towards_the_data():
    """A grid that starts at zero moves down when values lie below it."""
    quantizer = LSQPlus(IntSpec(bits=4, signed=False, scheme="affine"), MinMax)
    quantizer(torch.rand(1000) * 3)
    assert quantizer.zero_point == 0
    x = torch.rand(1000) * 3 - 1
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=10.0)  # the gradient scale is 1 / 122
    before = (quantizer(x) - x).square().mean().item()
    for _ in range(200):
        optimizer.zero_grad()
        (quantizer(x) - x).square().mean().backward()
        optimizer.step()
    assert quantizer.zero_point == pytest.approx(5, abs=1)  # a third of 15 steps
    assert (quantizer(x) - x).square().mean().item() < before / 10
