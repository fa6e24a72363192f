"""PACT: the clipping threshold of activations is trained (Choi et al. 2018, arXiv:1805.06085).

    alpha = |threshold|      s = alpha / long      long: steps from zero to the farther end of the grid
    y     = (clamp(round(x / s) + z, qmin, qmax) - z) * s
    dy/dalpha = 1 where x >= alpha, 0 inside

The zero point stays where calibration put it: the lowest integer behind a ReLU. The paper adds lambda * alpha^2 to the
loss; give `threshold` a weight decay of 2 * lambda for that. Gradients: functional/pact.py.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from qat.functional.pact import learned_clip, longer_side
from qat.observers import Observer
from qat.quantizers.trained import TrainedFakeQuantize, positive
from qat.spec import IntSpec


class PACT(TrainedFakeQuantize):
    """A trained clipping threshold, for activations.

    Args:
        spec: the grid.
        observer: builds the range estimator to start from.
        channels: length of the scale when the grid is per channel.
    """

    def __init__(self, spec: IntSpec, observer: Callable[..., Observer], *, channels: int | None = None) -> None:
        super().__init__(spec, observer, channels=channels)
        self.threshold = nn.Parameter(torch.ones(self.shape))
        self.register_buffer("zero_point", torch.zeros(self.shape, dtype=torch.int32))

    @property
    def scale(self) -> Tensor:  # type: ignore[override]
        """Units of the input per step, scalar or `[C]`; carries the gradient of `threshold`."""
        return positive(self.threshold) / longer_side(self.zero_point, self.spec.qmin, self.spec.qmax)

    @torch.no_grad()
    def start(self, scale: Tensor, zero_point: Tensor) -> None:
        """Set threshold and zero point."""
        self.zero_point.copy_(zero_point)
        self.threshold.copy_(scale * longer_side(zero_point, self.spec.qmin, self.spec.qmax))

    def quantized(self, x: Tensor) -> Tensor:
        """`x` on the grid."""
        alpha = self.trainable(positive(self.threshold))
        return learned_clip(x, alpha, self.zero_point, self.spec.qmin, self.spec.qmax, axis=self.spec.axis)
