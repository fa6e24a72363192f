from __future__ import annotations

import pytest
import torch

from qat.functional.averaging import blend_, share_kept


def test_the_first_steps_keep_less():
    assert [share_kept(t, 0.5) for t in (0, 1, 7, 8, 1000)] == pytest.approx([0.1, 2 / 11, 8 / 17, 0.5, 0.5])
    assert share_kept(10**6, 0.999) == 0.999


def test_a_constant_is_its_own_average_and_two_values_mix():
    a, b = torch.full((3,), 2.0), torch.tensor([2.0, 4.0, 6.0])
    blend_([a], [a.clone()], 0.3)
    assert torch.equal(a, torch.full((3,), 2.0))
    blend_([a], [b], 0.75)
    assert a.tolist() == [2.0, 2.5, 3.0]
