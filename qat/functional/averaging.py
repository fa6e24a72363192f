"""An exponential moving average that forgets its start: the first steps weigh less, the later ones as they should.

    d_t = min(decay, (1 + t) / (10 + t))        t: averages taken before, 0 for the first
    a_t = d_t * a_(t-1) + (1 - d_t) * w_t

A plain average with decay 0.999 would hold on to the start for thousands of steps. Source: the `num_updates` of
TensorFlow's `ExponentialMovingAverage`; of weights, Polyak and Juditsky 1992.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def share_kept(averages: int, decay: float) -> float:
    """The d above."""
    return min(decay, (1 + averages) / (10 + averages))


@torch.no_grad()
def blend_(averaged: Sequence[Tensor], current: Sequence[Tensor], kept: float) -> None:
    """One step of the average, in place.

    Args:
        averaged: float tensors.
        current: as many, shaped like them.
        kept: the d above.
    """
    for a, w in zip(averaged, current, strict=True):
        a.lerp_(w.to(a), 1.0 - kept)
