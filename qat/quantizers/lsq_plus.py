"""LSQ+: step size and offset are trained, for activations that are not all positive (Bhalgat et al. 2020).

    s = |step|      z = clamp(round(-offset / s), qmin, qmax)
    y = (clamp(round(x / s) + z, qmin, qmax) - z) * s

Zero stays on the grid; the paper's offset is a float. Gradients: functional/lsq_plus.py, arXiv:2004.09576.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from qat.errors import ConfigError
from qat.functional.lsq_plus import learned_step_and_offset, zero_point_of
from qat.observers import Observer
from qat.quantizers.trained import TrainedFakeQuantize, positive
from qat.spec import IntSpec, Scheme


class LSQPlus(TrainedFakeQuantize):
    """A trained step size and offset, for activations.

    Args:
        spec: an affine grid.
        observer: builds the range estimator to start from.
        channels: length of the scale when the grid is per channel.

    Raises:
        ConfigError: for a symmetric grid, whose zero point is fixed.
    """

    def __init__(self, spec: IntSpec, observer: Callable[..., Observer], *, channels: int | None = None) -> None:
        super().__init__(spec, observer, channels=channels)
        if spec.scheme is not Scheme.AFFINE:
            raise ConfigError(f"LSQPlus trains an offset, and the grid {spec} has none; use LSQ, or scheme: affine")
        self.step = nn.Parameter(torch.ones(self.shape))
        self.offset = nn.Parameter(torch.zeros(self.shape))  # in units of the input

    @property
    def scale(self) -> Tensor:  # type: ignore[override]
        """Units of the input per step, scalar or `[C]`; carries the gradient of `step`."""
        return positive(self.step)

    @property
    def zero_point(self) -> Tensor:  # type: ignore[override]
        """The integer that stands for zero, int32."""
        return zero_point_of(self.offset.detach(), self.scale.detach(), self.spec.qmin, self.spec.qmax)

    @torch.no_grad()
    def start(self, scale: Tensor, zero_point: Tensor) -> None:
        """Set step size and offset."""
        self.step.copy_(scale)
        self.offset.copy_(-zero_point * scale)

    def quantized(self, x: Tensor) -> Tensor:
        """`x` on the grid."""
        scale, offset = self.trainable(self.scale), self.trainable(self.offset)
        return learned_step_and_offset(x, scale, offset, self.spec.qmin, self.spec.qmax, axis=self.spec.axis)
