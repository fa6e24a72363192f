"""Histogram, clipped share and signal-to-noise ratio of a tensor before and after its quantizer.

SNR = 10 log10(sum x^2 / sum (x - y)^2)     dB; 6.02 dB a bit for a grid that fits
clipped = share of x with round(x / s) + z outside [qmin, qmax]
"""

from __future__ import annotations

import torch
from torch import Tensor

from qat.functional.snr import decibels
from qat.quantizers import FakeQuantize
from qat.report.record import Values

BINS = 48


class Noise:
    """Signal and noise, summed over batches."""

    def __init__(self) -> None:
        self.signal = self.noise = 0.0

    def add(self, reference: Tensor, value: Tensor) -> None:
        """Take in a tensor and what became of it, of the same shape."""
        x, y = reference.double(), value.double()
        self.signal += float(x.square().sum())
        self.noise += float((x - y).square().sum())

    @property
    def snr(self) -> float:
        """In dB (`functional/snr.py`)."""
        return decibels(self.signal, self.noise)


class Watched:
    """A tensor and its quantizer, summed over batches; the bins are those of the first."""

    def __init__(self, quantizer: FakeQuantize) -> None:
        self.quantizer, self.noise = quantizer, Noise()
        self.low = self.high = 0.0
        self.counts = torch.zeros(BINS, dtype=torch.int64)
        self.outside = self.total = 0

    def add(self, x: Tensor) -> None:
        """Take in the tensor before its quantizer."""
        x = x.detach().float()
        if not self.total:
            self.low, self.high = (float(v) for v in torch.aminmax(x))
            if self.low == self.high:
                self.low, self.high = self.low - 0.5, self.high + 0.5
        self.noise.add(x, self.quantizer(x))
        inside = x.clamp(self.low, self.high)  # a later batch may reach further
        self.counts += torch.histc(inside.cpu(), BINS, self.low, self.high).long()
        spec = self.quantizer.spec
        scale, zero = self._grid(x.ndim)
        integers = (x / scale).round() + zero
        self.outside += int(((integers < spec.qmin) | (integers > spec.qmax)).sum())
        self.total += x.numel()

    @property
    def values(self) -> Values:
        """What was seen."""
        spec = self.quantizer.spec
        scale, zero = self._grid(1)
        return Values(
            low=self.low,
            high=self.high,
            counts=tuple(self.counts.tolist()),
            grid=str(spec),
            bits=spec.bits,
            grid_low=float(((spec.qmin - zero) * scale).min()),
            grid_high=float(((spec.qmax - zero) * scale).max()),
            clipped=self.outside / max(self.total, 1),
            snr=self.noise.snr,
        )

    def _grid(self, ndim: int) -> tuple[Tensor, Tensor]:
        scale, zero = self.quantizer.scale.detach(), self.quantizer.zero_point.float()
        axis = self.quantizer.axis
        if axis is None:
            return scale.abs(), zero
        shape = [1] * ndim
        shape[axis if ndim > 1 else 0] = -1
        return scale.abs().view(shape), zero.view(shape)
