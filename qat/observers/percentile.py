"""The range between two percentiles of each batch, averaged over batches.

    low += a * (low percentile of x - low)        high += a * (high percentile of x - high)

with the weight a of `MovingAverage`. A few outliers then do not stretch the grid; they are clipped. Of several
processes, the mean of their percentiles counts.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qat.errors import ConfigError
from qat.functional.across import mean_across
from qat.functional.percentile import percentile_range
from qat.observers.moving_average import MovingAverage
from qat.spec import IntSpec


class Percentile(MovingAverage):
    """Percentiles, averaged over batches.

    Args:
        percent: share of values at or below the range's high end, and of those at or above its low end; (50, 100].
        momentum: weight of a new batch once 1 / momentum batches were seen, in (0, 1]; 1 follows the last tensor.
        shape: shape of the range.
        axis: the channel axis, None for one range per tensor.
        spec: the grid; of no interest here.

    Raises:
        ConfigError: for a percentage outside (50, 100] or a momentum outside (0, 1].
    """

    def __init__(
        self,
        *,
        percent: float = 99.9,
        momentum: float = 0.05,
        shape: tuple[int, ...] = (),
        axis: int | None = None,
        spec: IntSpec | None = None,
    ) -> None:
        super().__init__(momentum=momentum, shape=shape, axis=axis, spec=spec)
        if not 50.0 < percent <= 100.0:
            raise ConfigError(f"need 50 < percent <= 100, got {percent}; 100 is the whole range")
        self.percent = percent

    @torch.no_grad()
    def observe(self, x: Tensor, *, low: float = -math.inf, high: float = math.inf) -> None:
        """Take in `x`, as a clamping activation with these ends would show it: a clamp keeps the order of values."""
        x_low, x_high = percentile_range(x.detach().float(), self.axis, self.percent)
        ends = torch.stack((x_low, x_high)).clamp(low, high)
        self.update(*(ends if self.replicated else mean_across(ends)).unbind())
