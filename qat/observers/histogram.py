"""The range whose grid has the least squared error, from a histogram of everything seen.

    low, high = argmin of sum over bins of count * (c - Q(c))^2

The fewer bits, the more it pays to clip: 2 bits for a normal distribution want 40 % of its range. The histogram grows
with its values and never depends on the order of batches (functional/histogram.py). A search takes milliseconds per
tensor, so this is for calibration; `latest` forgets the past, as weights that are being trained want it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qat.errors import ConfigError
from qat.functional.across import sum_across
from qat.functional.histogram import best_range, count, reach_of, widen
from qat.functional.ranges import tensor_range
from qat.observers.base import Observer
from qat.spec import IntSpec


class Histogram(Observer):
    """Range of least squared quantization error.

    Args:
        bins: how many; a multiple of 4.
        latest: look at the last tensor alone; meant for weights.
        shape: shape of the range.
        axis: the channel axis, None for one range per tensor.
        spec: the grid whose error counts.

    Raises:
        ConfigError: for a number of bins that is no multiple of 4, or without a grid.
    """

    counts: Tensor
    smallest: Tensor
    largest: Tensor

    def __init__(
        self,
        *,
        bins: int = 2048,
        latest: bool = False,
        shape: tuple[int, ...] = (),
        axis: int | None = None,
        spec: IntSpec | None = None,
    ) -> None:
        super().__init__(shape=shape, axis=axis, spec=spec)
        if bins < 4 or bins % 4:
            raise ConfigError(f"need bins >= 4 and a multiple of 4, so that bins can be added in pairs; got {bins}")
        if spec is None:
            raise ConfigError("Histogram weighs the errors of a grid; build it with spec=IntSpec(bits=...)")
        self.bins, self.latest, self.grid = bins, latest, spec
        # nothing to keep of a tensor that will be forgotten: a histogram per channel is larger than its weights
        self.register_buffer("counts", torch.zeros((*shape, 0 if latest else bins), dtype=torch.int64))
        self.register_buffer("smallest", torch.full(shape, math.inf))
        self.register_buffer("largest", torch.full(shape, -math.inf))

    @torch.no_grad()
    def observe(self, x: Tensor, *, low: float = -math.inf, high: float = math.inf) -> None:
        """Take in `x`, as a clamping activation with these ends would show it."""
        x = x.detach().float().clamp(low, high)
        smallest, largest = self._across(*tensor_range(x, self.axis))
        if not self.latest:
            smallest, largest = self.smallest.minimum(smallest), self.largest.maximum(largest)
        if not bool((torch.isfinite(smallest) & torch.isfinite(largest)).all()):
            self.update(smallest, largest)  # NaN or Inf: nothing to count, and the caller will name it
            return
        reach = reach_of(smallest, largest)
        counts = count(x, reach, self.bins, self.axis)
        if not self.replicated:
            counts = sum_across(counts)
        if not self.latest:
            counts += widen(self.counts, self._reach(), reach)
            self.counts.copy_(counts)
        self.smallest.copy_(smallest)
        self.largest.copy_(largest)
        self.update(*best_range(counts, reach, smallest, largest, self.grid))

    def update(self, low: Tensor, high: Tensor) -> None:
        """Replace the range."""
        self.low.copy_(low)
        self.high.copy_(high)

    def reset(self) -> None:
        """Forget everything seen."""
        super().reset()
        self.counts.zero_()
        self.smallest.fill_(math.inf)
        self.largest.fill_(-math.inf)

    def _reach(self) -> Tensor:
        """R of `counts`; 0 when nothing was seen."""
        seen = self.smallest <= self.largest
        return torch.where(seen, reach_of(self.smallest, self.largest), torch.zeros_like(self.smallest))
