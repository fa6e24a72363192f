"""What a value of the fake-quant model is in the integer model: integers on a grid, several of them, or a float."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import fx

from qat.quantizers import FakeQuantize


@dataclass(frozen=True)
class Grid:
    """The grid of an activation: `(q - zero_point) * scale`, with q in [qmin, qmax]."""

    scale: float
    zero_point: int
    qmin: int
    qmax: int

    @classmethod
    def of(cls, quantizer: FakeQuantize) -> Grid:
        """The grid that a quantizer has now."""
        return cls(float(quantizer.scale), int(quantizer.zero_point), quantizer.spec.qmin, quantizer.spec.qmax)

    @property
    def dtype(self) -> torch.dtype:
        """Of the stored integers."""
        return torch.int8 if self.qmin < 0 else torch.uint8

    @property
    def operands(self) -> tuple[float, int, int, int, torch.dtype]:
        """What quantize and dequantize take beside the value."""
        return self.scale, self.zero_point, self.qmin, self.qmax, self.dtype

    def times(self, factor: float) -> Grid:
        """The same integers, of values that are `factor` times as large."""
        return replace(self, scale=self.scale * factor)


@dataclass(frozen=True)
class OnGrid:
    """A value stored as integers: its node in the integer graph, and the grid to read it by."""

    node: fx.Node
    grid: Grid


@dataclass(frozen=True)
class Pieces:
    """Several values of one grid, of chunk, split or unbind: a node that yields them in float, and the grid."""

    node: fx.Node
    grid: Grid


Value = OnGrid | Pieces | fx.Node
