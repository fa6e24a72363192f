from __future__ import annotations

import pytest
import torch

from qat.errors import ConfigError
from qat.observers import Percentile


def test_outliers_are_left_out_and_batches_averaged():
    observer = Percentile(percent=99.0)
    for scale in (1.0, 3.0):
        x = torch.arange(100.0) * scale
        x[7], x[50] = 1e6, -1e6
        observer.observe(x)
    assert (observer.low, observer.high) == (0.0, (1.0 + 3.0) / 2 * 99.0)  # the 99th of a hundred, then the mean
    assert observer.batches == 2


@pytest.mark.parametrize("percent", [50.0, 0.1, 100.1, float("nan")])
def test_a_percentage_outside_its_range(percent):
    with pytest.raises(ConfigError, match=rf"need 50 < percent <= 100, got {percent}"):
        Percentile(percent=percent)


def test_the_momentum_is_checked_as_everywhere():
    with pytest.raises(ConfigError, match="need 0 < momentum <= 1, got 0"):
        Percentile(momentum=0.0)
