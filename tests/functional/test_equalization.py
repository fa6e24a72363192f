from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from qat.functional.equalization import by_input, factors, input_range, output_range


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_ranges_are_those_of_the_channels(groups):
    w = torch.randn(12, 6 // groups, 3, 3)
    assert torch.equal(output_range(w), torch.stack([row.abs().max() for row in w]))
    found = input_range(w, groups)
    for channel in range(6):
        x = torch.zeros(1, 6, 3, 3)
        x[0, channel] = 1.0
        reads = F.conv2d(x, torch.ones_like(w), groups=groups)[0, :, 0, 0] > 0  # output channels that read it
        column = channel % (6 // groups)
        assert found[channel] == w[reads, column].abs().max()


def test_by_input_is_a_view():
    w = torch.zeros(4, 2, 3, 3)
    by_input(w, 2)[1, :, 0].fill_(1.0)
    assert w[2:, 0].eq(1).all()
    assert w.sum() == 2 * 9


def test_factors_make_both_ranges_the_same():
    first, second = torch.tensor([4.0, 0.01, 0.0, 3.0]), torch.tensor([1.0, 1.0, 2.0, 0.0])
    s = factors(first, second)
    torch.testing.assert_close((first / s)[:2], (second * s)[:2])
    torch.testing.assert_close((first / s)[:2], (first * second).sqrt()[:2])
    assert s[2:].tolist() == [1.0, 1.0]  # a dead channel stays
