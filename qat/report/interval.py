"""How far a share of n examples may be from the truth: the 95 % confidence interval of Wilson (1927).

(p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)
"""

from __future__ import annotations

import math

Z = 1.959964  # 95 % of a normal distribution


def wilson(percent: float, n: int) -> tuple[float, float]:
    """Both ends, in percent, for a share of `n` >= 1 examples."""
    p, z2 = percent / 100.0, Z * Z / n
    half = Z * math.sqrt(p * (1 - p) / n + z2 / (4 * n))
    return (
        100.0 * max((p + z2 / 2 - half) / (1 + z2), 0.0),
        100.0 * min((p + z2 / 2 + half) / (1 + z2), 1.0),
    )


def between(percent: float, n: int) -> str:
    """Both ends as text, one digit behind the point."""
    low, high = wilson(percent, n)
    return f"{low:.1f} \N{EN DASH} {high:.1f}"
