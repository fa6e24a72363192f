"""Percentiles as a range: what remains when the farthest values are left out.

    k    = ceil(percent / 100 * n)          n: number of values
    high = the k-th smallest value          low = the k-th largest

Nearest ranks, no interpolation: both ends are values that occurred. Source: McKinstry et al. 2018, arXiv:1809.04191,
section 2.1, for percentiles as ranges.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qat.functional.ranges import tensor_range


def percentile_range(x: Tensor, axis: int | None, percent: float) -> tuple[Tensor, Tensor]:
    """Range of `x` between its percentiles, over everything or per slice of `axis`; NaN and Inf are not left out.

    Args:
        x: float values of any shape.
        axis: the channel axis, None for one range.
        percent: share of values at or below `high`, and of those at or above `low`; 0 to 100.
    """
    rows = x.flatten()[None] if axis is None else x.movedim(axis, 0).flatten(1) if x.ndim > 1 else x[:, None]
    n = rows.shape[1]
    k = min(max(math.ceil(percent / 100 * n), 1), n)
    smallest, largest = tensor_range(x, axis)
    low, high = (rows.kthvalue(rank, dim=1).values.view_as(smallest) for rank in (n - k + 1, k))
    broken = ~(torch.isfinite(smallest) & torch.isfinite(largest))
    return torch.where(broken, smallest, low), torch.where(broken, largest, high)
