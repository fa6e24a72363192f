"""What every quantizer with a trained range is: an observer to start from, then parameters that gradients move.

calibrating   learning while switched off: the observer takes in x, and the parameters start from its range
training      learning while switched on: the parameters get gradients; the observer rests
frozen        not learning (`observing` off, or evaluation mode): the parameters are read without gradient

A frozen parameter has no gradient at all, so that an optimizer leaves it where it is, momentum and weight decay
included; that needs `zero_grad(set_to_none=True)`, the default. DDP wants `find_unused_parameters=True` then.

Scales are the size of a parameter, |p| but never below EPS: an optimizer may step over zero, a grid cannot.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from qat.functional.ranges import EPS, qparams
from qat.functional.ste import IDENTITY, Clamp
from qat.observers import Observer
from qat.quantizers.base import FakeQuantize
from qat.quantizers.observed import clamp
from qat.spec import IntSpec


class TrainedFakeQuantize(FakeQuantize):
    """Fake quantization with a range that is trained.

    A subclass registers its parameters, sets them in `start`, and computes in `quantized`.

    Args:
        spec: the grid.
        observer: builds the range estimator to start from; called with `shape`, `axis` and `spec`.
        channels: length of the scale when the grid is per channel.
    """

    trained = True

    def __init__(self, spec: IntSpec, observer: Callable[..., Observer], *, channels: int | None = None) -> None:
        super().__init__(spec, channels=channels)
        self.observer = observer(shape=self.shape, axis=self.axis, spec=spec)
        self._started = False  # what `calibrated` said last; saves a wait for the device at every batch

    @abstractmethod
    def start(self, scale: Tensor, zero_point: Tensor) -> None:
        """Set the parameters to a calibrated grid; without gradient."""

    @abstractmethod
    def quantized(self, x: Tensor) -> Tensor:
        """`x` (float32) on the grid, with gradients for the parameters while learning."""

    def reset(self) -> None:
        """Forget the range; the parameters stay until the next tensor is seen."""
        self.observer.reset()
        self._started = False

    @property
    def calibrated(self) -> bool:
        """Whether the observer saw a tensor; NaN counts as seen."""
        return not bool((self.observer.low > self.observer.high).any())

    @torch.no_grad()
    def observe(self, x: Tensor, activation: Clamp = IDENTITY) -> None:
        """Take in the range of `activation(x)`, and start from it."""
        self.observer.observe(x, low=activation.low, high=activation.high)
        self.start(*qparams(self.observer.low, self.observer.high, self.spec))

    def forward(self, x: Tensor, activation: Clamp = IDENTITY) -> Tensor:
        """`activation(x)` on the grid; float32 inside, whatever autocast says. Shape and dtype of `x`."""
        if self.learning and not (self.enabled and self._starts_calibrated()):
            self.observe(x, activation)
        y = clamp(x, activation)
        return self.quantized(y.float()).to(x.dtype) if self.enabled else y

    def trainable(self, parameter: Tensor) -> Tensor:
        """A parameter as `quantized` reads it: without gradient unless learning."""
        return parameter if self.learning else parameter.detach()

    def _starts_calibrated(self) -> bool:
        self._started = self._started or self.calibrated
        return self._started


def positive(parameter: Tensor) -> Tensor:
    """The size of a parameter, at least EPS."""
    return parameter.abs().clamp(min=EPS)
