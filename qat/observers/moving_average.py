"""A moving average of each batch's range, without a bias towards the first batch.

    n    = batches seen, this one included        a = max(momentum, 1 / n)
    low += a * (min x - low)                      high += a * (max x - high)

The first 1 / momentum batches are averaged evenly, later ones exponentially. Source: Jacob et al. 2018,
arXiv:1712.05877, section 3.1; the warm-up is that of Adam's bias correction for a constant start.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qat.errors import ConfigError
from qat.observers.base import Observer
from qat.spec import IntSpec


class MovingAverage(Observer):
    """Range averaged over batches.

    Args:
        momentum: weight of a new batch once 1 / momentum batches were seen, in (0, 1].
        shape: shape of the range.
        axis: the channel axis, None for one range per tensor.
        spec: the grid; of no interest here.

    Raises:
        ConfigError: for a momentum outside (0, 1].
    """

    batches: Tensor

    def __init__(
        self,
        *,
        momentum: float = 0.05,
        shape: tuple[int, ...] = (),
        axis: int | None = None,
        spec: IntSpec | None = None,
    ) -> None:
        super().__init__(shape=shape, axis=axis, spec=spec)
        if not 0.0 < momentum <= 1.0:
            raise ConfigError(f"need 0 < momentum <= 1, got {momentum}")
        self.momentum = momentum
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def update(self, low: Tensor, high: Tensor) -> None:
        """Move towards the new range."""
        self.batches.add_(1)  # not `+= 1`, which sets the attribute too: torch.compile would lose it
        weight = (1.0 / self.batches).clamp(min=self.momentum)
        first = self.batches == 1  # the buffers hold infinities until then
        self.low.copy_(torch.where(first, low, self.low + weight * (low - self.low)))
        self.high.copy_(torch.where(first, high, self.high + weight * (high - self.high)))

    @torch.no_grad()
    def reset(self) -> None:
        """Forget everything seen."""
        super().reset()
        self.batches.zero_()
