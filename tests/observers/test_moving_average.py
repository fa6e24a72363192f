from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qat.errors import ConfigError
from qat.observers import MovingAverage

ROUNDING = 1e-5  # relative: up to 30 float32 updates against float64


def closed_form(values: list[float], momentum: float) -> float:
    """Plain mean of the first 1 / momentum values, exponential average from there on."""
    warm = min(len(values), int(1 / momentum))
    mean = sum(values[:warm]) / warm
    for value in values[warm:]:
        mean = mean * (1 - momentum) + value * momentum
    return mean


@given(
    lows=st.lists(st.floats(-100, 0, width=32), min_size=1, max_size=30),
    momentum=st.sampled_from([1.0, 0.5, 0.25, 0.125, 0.05]),
)
def test_mean_first_then_exponential(lows, momentum):
    observer = MovingAverage(momentum=momentum)
    for low in lows:
        observer.observe(torch.tensor([low, 100.0 - low]))
    assert float(observer.low) == pytest.approx(closed_form(lows, momentum), rel=ROUNDING, abs=100 * ROUNDING)
    highs = [100.0 - low for low in lows]
    assert float(observer.high) == pytest.approx(closed_form(highs, momentum), rel=ROUNDING)
    assert observer.batches == len(lows)


def test_momentum_one_follows_the_last_batch():
    observer = MovingAverage(momentum=1.0)
    for x in (torch.tensor([-5.0, 5.0]), torch.tensor([-1.0, 2.0])):
        observer.observe(x)
    assert (observer.low, observer.high) == (-1.0, 2.0)


@pytest.mark.parametrize("momentum", [0.0, -0.1, 1.5, float("nan")])
def test_momentum_outside_its_range(momentum):
    with pytest.raises(ConfigError, match=rf"need 0 < momentum <= 1, got {momentum}"):
        MovingAverage(momentum=momentum)
