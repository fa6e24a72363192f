"""The share of weights that oscillate: whose integer moved at a step, and moved back at the next.

o_t = [sign(q_t - q_(t-1)) = -sign(q_(t-1) - q_(t-2)) != 0]        share = mean of o_t over the weight

The first rule of functional/oscillation.py, over three steps in a row instead of all: as cheap as rarely as one looks.
"""

from __future__ import annotations

import math
from collections import deque

import torch
from torch import Tensor

from qat.layers import FakeQuantWeight
from qat.placement.prepared import PreparedModel

STEPS = 3  # that one share is made of


class Oscillations:
    """The integers of all weights at the last steps."""

    def __init__(self) -> None:
        self._seen: dict[str, deque[Tensor]] = {}
        self._last: int | None = None

    @torch.no_grad()
    def look(self, prepared: PreparedModel, step: int) -> None:
        """Take down the integers at a step, once; what was seen before a gap is forgotten."""
        if step == self._last:
            return
        if self._last is not None and step != self._last + 1:
            self._seen.clear()
        self._last = step
        for name, layer in prepared.named_modules():
            if isinstance(layer, FakeQuantWeight):
                seen = self._seen.setdefault(name, deque(maxlen=STEPS))
                seen.append(layer.weight_quantizer.integers(layer.weight.float()))

    def shares(self) -> dict[str, float]:
        """By layer, 0 to 1; NaN where fewer than three steps in a row were seen."""
        return {name: share(*seen) if len(seen) == STEPS else math.nan for name, seen in self._seen.items()}


def share(first: Tensor, second: Tensor, third: Tensor) -> float:
    """Of integers that changed and changed back, in three tensors of one shape."""
    before, after = (second.int() - first.int()).sign(), (third.int() - second.int()).sign()
    return float(((before != 0) & (after == -before)).float().mean())
