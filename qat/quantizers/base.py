"""What every fake-quant module is: a grid with scale and zero point, and two switches.

A subclass decides where scale and zero point come from: an observer (`observed.py`), or training.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from qat.errors import CalibrationError
from qat.functional.affine import quantize
from qat.functional.ste import IDENTITY, Clamp
from qat.observers import Observer
from qat.spec import Granularity, IntSpec


class FakeQuantize(nn.Module, ABC):
    """Puts float values onto an integer grid, and lets gradients through.

    `enabled` and `observing` are settings of the moment, like `training`: the schedule (or the caller) sets them, and
    no checkpoint holds them. A quantizer learns only while it is `observing` *and* in training mode, so that
    validation never moves a range.

    Args:
        spec: the grid.
        channels: length of the scale when the grid is per channel.
    """

    scale: Tensor
    zero_point: Tensor
    trained = False  # whether gradients move the range, not an observer

    def __init__(self, spec: IntSpec, *, channels: int | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.enabled = True
        self.observing = True
        self.shape: tuple[int, ...] = ()
        if spec.granularity is Granularity.PER_CHANNEL:
            if channels is None:
                raise ValueError("a per-channel quantizer needs the number of channels")
            self.shape = (channels,)

    @property
    def axis(self) -> int | None:
        """The channel axis, None when one scale serves the whole tensor."""
        return self.spec.axis if self.spec.granularity is Granularity.PER_CHANNEL else None

    @property
    def learning(self) -> bool:
        """Whether a forward pass may move the range now."""
        return self.observing and self.training

    @abstractmethod
    def observe(self, x: Tensor, activation: Clamp = IDENTITY) -> None:
        """Take in the range of `activation(x)`, and move scale and zero point."""

    @abstractmethod
    def forward(self, x: Tensor, activation: Clamp = IDENTITY) -> Tensor:
        """`activation(x)` on the grid; observes first when learning. Shape and dtype of `x`."""

    @abstractmethod
    def reset(self) -> None:
        """Forget the range; the quantizer is not calibrated any more."""

    @property
    @abstractmethod
    def calibrated(self) -> bool:
        """Whether scale and zero point came from data."""

    def for_weights(self) -> None:
        """Say that the tensor is a weight: the same in every process, so that its range needs no exchange."""
        for module in self.modules():
            if isinstance(module, Observer):
                module.replicated = True

    def require_calibrated(self, name: str) -> None:
        """Raise `CalibrationError` if no data ever set this quantizer's range; `name` is its place in the model."""
        if not self.calibrated:
            raise CalibrationError(
                f"the range of {name!r} was never observed, so it has no scale. Run qat.calibrate(prepared, batches) "
                "with batches that reach this layer, or leave the layer in float with exclude=[...]"
            )

    @torch.no_grad()
    def integers(self, x: Tensor) -> Tensor:
        """The integers that a runtime stores for `x`: int8 or uint8, shape of `x`."""
        return quantize(x, self.scale, self.zero_point, self.spec.qmin, self.spec.qmax, axis=self.spec.axis)

    def extra_repr(self) -> str:
        """Grid and switches."""
        return f"{self.spec}, enabled={self.enabled}, observing={self.observing}"
