"""Signal-to-noise ratio in dB: 10 log10(sum x^2 / sum (x - y)^2); 6.02 dB a bit for a grid that fits."""

from __future__ import annotations

import math

EXACT = 200.0  # dB, for no difference at all; float32 itself ends at about 150


def decibels(signal: float, noise: float) -> float:
    """The ratio of two energies in dB; `EXACT` without noise, 0 without a signal."""
    if noise == 0.0:
        return EXACT
    return 10.0 * math.log10(signal / noise) if signal else 0.0
