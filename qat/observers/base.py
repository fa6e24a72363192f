"""What every range estimator is: two buffers, and a rule for taking in a new range."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from qat.functional.across import range_across
from qat.functional.ranges import tensor_range
from qat.spec import IntSpec


class Observer(nn.Module, ABC):
    """A range [low, high] that follows the tensors it is shown.

    A subclass states in `update` what it makes of the range of one more tensor; one that needs more than the range
    (a histogram, say) overrides `observe`. Never observed means `low = +inf > high = -inf`.

    Where several processes train together, an observer sees their tensors as one (functional/across.py), so that its
    range is the same in all of them, to the last bit.

    Args:
        shape: shape of the range: `()` for one per tensor, `(C,)` for one per channel.
        axis: the channel axis, None for one range per tensor.
        spec: the grid that the range is for, for estimators that weigh its errors.

    Attributes:
        covers: whether the range holds every value of the last tensor, so that none of them is clipped.
        replicated: whether the tensor is the same in every process, as a weight is; then nothing is exchanged.
    """

    low: Tensor
    high: Tensor
    covers = False
    replicated = False

    def __init__(self, *, shape: tuple[int, ...] = (), axis: int | None = None, spec: IntSpec | None = None) -> None:
        super().__init__()
        self.axis, self.spec = axis, spec
        self.register_buffer("low", torch.full(shape, math.inf))
        self.register_buffer("high", torch.full(shape, -math.inf))

    @torch.no_grad()
    def observe(self, x: Tensor, *, low: float = -math.inf, high: float = math.inf) -> None:
        """Take in `x`, as a clamping activation with these ends would show it.

        A clamp is monotone, so the range of `clamp(x)` is the clamped range of `x`: the activation need not be
        computed for its range.
        """
        x_low, x_high = tensor_range(x.detach().float(), self.axis)
        if low > -math.inf or high < math.inf:
            x_low, x_high = x_low.clamp(low, high), x_high.clamp(low, high)
        self.update(*self._across(x_low, x_high))

    def _across(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The range of the tensors of all processes."""
        return (low, high) if self.replicated else range_across(low, high)

    @abstractmethod
    def update(self, low: Tensor, high: Tensor) -> None:
        """Take in the range of one tensor; both shaped like the buffers."""

    @torch.no_grad()
    def reset(self) -> None:
        """Forget everything seen."""
        self.low.fill_(math.inf)
        self.high.fill_(-math.inf)

    def extra_repr(self) -> str:
        """Shape and axis."""
        return f"shape={tuple(self.low.shape)}, axis={self.axis}"
