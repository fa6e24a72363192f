from __future__ import annotations

import pytest
import torch

from qat.functional.ends import ends


@pytest.mark.parametrize(
    ("zero_point", "expected"), [(None, (-7.0, 7.0)), (torch.tensor(3, dtype=torch.int32), (-10.0, 4.0))]
)
def test_one_grid_has_numbers_for_ends_on_a_cpu(zero_point, expected):
    first, last = ends(zero_point, -7, 7, torch.zeros(3))
    assert (first, last) == expected
    assert isinstance(first, float)
    assert isinstance(last, float)


def test_one_per_channel_broadcasts_along_its_axis():
    first, last = ends(torch.tensor([0, 2, 15], dtype=torch.int32), 0, 15, torch.zeros(2, 3, 4), axis=1)
    assert first.flatten().tolist() == [0.0, -2.0, -15.0]
    assert last.flatten().tolist() == [15.0, 13.0, 0.0]
    assert first.shape == last.shape == (1, 3, 1)
