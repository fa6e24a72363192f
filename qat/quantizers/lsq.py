"""LSQ: a quantizer whose step size is trained (Esser et al. 2020, arXiv:1902.08153).

    s     = |step|                                the parameter `step` starts from calibration
    y     = (clamp(round(x / s) + z, qmin, qmax) - z) * s
    dy/ds = round(x / s) - x / s inside the grid, qmin - z below, qmax - z above; times 1 / sqrt(n * qmax)

The zero point z stays where calibration put it. Gradients: functional/lsq.py.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from qat.functional.lsq import learned_step
from qat.observers import Observer
from qat.quantizers.trained import TrainedFakeQuantize, positive
from qat.spec import IntSpec, Scheme


class LSQ(TrainedFakeQuantize):
    """A trained step size, for weights and activations.

    Args:
        spec: the grid.
        observer: builds the range estimator to start from; `qat.observers.Histogram` starts nearest to the optimum.
        channels: length of the scale when the grid is per channel.
    """

    def __init__(self, spec: IntSpec, observer: Callable[..., Observer], *, channels: int | None = None) -> None:
        super().__init__(spec, observer, channels=channels)
        self.step = nn.Parameter(torch.ones(self.shape))
        self.register_buffer("zero_point", torch.zeros(self.shape, dtype=torch.int32))

    @property
    def scale(self) -> Tensor:  # type: ignore[override]
        """Units of the input per step, scalar or `[C]`; carries the gradient of `step`."""
        return positive(self.step)

    @torch.no_grad()
    def start(self, scale: Tensor, zero_point: Tensor) -> None:
        """Set step size and zero point."""
        self.step.copy_(scale)
        self.zero_point.copy_(zero_point)

    def quantized(self, x: Tensor) -> Tensor:
        """`x` on the grid."""
        mirrored = self.spec.scheme is Scheme.SYMMETRIC and self.spec.signed
        zero_point = None if mirrored else self.zero_point
        scale = self.trainable(self.scale)
        return learned_step(x, scale, zero_point, self.spec.qmin, self.spec.qmax, axis=self.spec.axis)
