from __future__ import annotations

import pytest

from qat.functional.snr import EXACT, decibels


@pytest.mark.parametrize(
    ("signal", "noise", "expected"), [(100.0, 1.0, 20.0), (1.0, 1.0, 0.0), (1.0, 0.0, EXACT), (0.0, 1.0, 0.0)]
)
def test_closed_form(signal, noise, expected):
    assert decibels(signal, noise) == pytest.approx(expected)
