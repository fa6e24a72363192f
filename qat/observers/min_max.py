"""The range of everything seen, or of the last tensor alone.

    low = min(low, min x)        high = max(high, max x)

A weight that is being trained wants its own range of this moment, not that of all its past: `latest=True`.
"""

from __future__ import annotations

from torch import Tensor

from qat.observers.base import Observer
from qat.spec import IntSpec


class MinMax(Observer):
    """Smallest and largest value.

    Args:
        latest: follow the last tensor alone; meant for weights.
        shape: shape of the range.
        axis: the channel axis, None for one range per tensor.
        spec: the grid; of no interest here.
    """

    covers = True

    def __init__(
        self,
        *,
        latest: bool = False,
        shape: tuple[int, ...] = (),
        axis: int | None = None,
        spec: IntSpec | None = None,
    ) -> None:
        super().__init__(shape=shape, axis=axis, spec=spec)
        self.latest = latest

    def update(self, low: Tensor, high: Tensor) -> None:
        """Widen the range, or replace it."""
        self.low.copy_(low if self.latest else self.low.minimum(low))
        self.high.copy_(high if self.latest else self.high.maximum(high))
