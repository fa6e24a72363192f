"""A quantizer whose range is watched, not trained: scale and zero point follow an observer until it is frozen.

learning    observer takes in x, then (s, z) = qparams(low, high)
always      y = clamp(round(x / s) + z) - z) * s, straight-through gradient (functional/ste.py)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from qat.functional.ranges import qparams
from qat.functional.ste import IDENTITY, Clamp, fake_quantize, fake_quantize_channels
from qat.observers import Observer
from qat.quantizers.base import FakeQuantize
from qat.spec import IntSpec, Scheme


class ObservedFakeQuantize(FakeQuantize):
    """Fake quantization with an observed range.

    Args:
        spec: the grid.
        observer: builds the range estimator from `shape`, `axis` and `spec`.
        channels: length of the scale when the grid is per channel.
    """

    def __init__(self, spec: IntSpec, observer: Callable[..., Observer], *, channels: int | None = None) -> None:
        super().__init__(spec, channels=channels)
        self.observer = observer(shape=self.shape, axis=self.axis, spec=spec)
        self.register_buffer("scale", torch.ones(self.shape))
        self.register_buffer("zero_point", torch.zeros(self.shape, dtype=torch.int32))

    def reset(self) -> None:
        """Forget the range; scale and zero point stay until the next tensor is seen."""
        self.observer.reset()

    @property
    def calibrated(self) -> bool:
        """Whether the observer saw a tensor; NaN counts as seen."""
        return not bool((self.observer.low > self.observer.high).any())

    @torch.no_grad()
    def observe(self, x: Tensor, activation: Clamp = IDENTITY) -> None:
        """Take in the range of `activation(x)`, and set scale and zero point from it."""
        self.observer.observe(x, low=activation.low, high=activation.high)
        scale, zero_point = qparams(self.observer.low, self.observer.high, self.spec)
        self.scale.copy_(scale)
        self.zero_point.copy_(zero_point)

    def forward(self, x: Tensor, activation: Clamp = IDENTITY) -> Tensor:
        """`activation(x)` on the grid; float32 inside, whatever autocast says. Shape and dtype of `x`."""
        learning = self.learning
        if learning:
            self.observe(x, activation)
        if not self.enabled:
            return clamp(x, activation)
        qmin, qmax = self.spec.qmin, self.spec.qmax
        if self.shape:
            symmetric = self.spec.scheme is Scheme.SYMMETRIC and self.spec.signed
            zero_point = None if symmetric else self.zero_point
            clips = not (learning and self.observer.covers)
            y = fake_quantize_channels(
                clamp(x, activation).float(), self.scale, zero_point, qmin, qmax, axis=self.spec.axis, clips=clips
            )
        else:
            y = fake_quantize(x.float(), self.scale, self.zero_point, qmin, qmax, activation=activation)
        return y.to(x.dtype)


def clamp(x: Tensor, activation: Clamp) -> Tensor:
    """The activation alone, by the very functions that a float model calls."""
    if activation == IDENTITY:
        return x
    if activation == Clamp(0.0, float("inf")):
        return torch.nn.functional.relu(x)
    return torch.nn.functional.hardtanh(x, activation.low, activation.high)
