from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qat.functional.percentile import percentile_range
from qat.functional.ranges import tensor_range


@given(
    values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=50),
    percent=st.floats(50.0, 100.0, exclude_min=True),
)
def test_both_ends_are_the_values_of_that_rank(values, percent):
    low, high = percentile_range(torch.tensor(values), None, percent)
    ordered, k = sorted(values), math.ceil(percent / 100 * len(values))
    assert (low, high) == (ordered[-k], ordered[k - 1])
    assert sum(v <= high for v in values) >= percent / 100 * len(values)
    assert low <= high


def test_all_of_them_is_the_range():
    x = torch.randn(3, 4, 5)
    for axis in (None, 0, 1, -1):
        for ours, theirs in zip(percentile_range(x, axis, 100.0), tensor_range(x, axis), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_per_channel_is_per_tensor_on_every_slice(axis):
    x = torch.randn(6, 40, 7)
    low, high = percentile_range(x, axis, 90.0)
    parts = [percentile_range(part, None, 90.0) for part in x.unbind(axis)]
    assert torch.equal(low, torch.stack([p[0] for p in parts]))
    assert torch.equal(high, torch.stack([p[1] for p in parts]))


def test_one_value_per_channel():
    x = torch.randn(5)
    low, high = percentile_range(x, 0, 99.0)
    assert torch.equal(low, x)
    assert torch.equal(high, x)
