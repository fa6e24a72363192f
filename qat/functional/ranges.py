"""From an observed range to a grid: scale and zero point.

    affine      low' = min(low, 0), high' = max(high, 0)          zero stays exactly representable
                s = (high' - low') / (qmax - qmin)                z = clamp(qmin - round(low' / s), qmin, qmax)
                then s grows, by at most one step in the grid's length, until the longer side of zero ends on the grid
    symmetric   signed:   s = max(|low|, |high|) / qmax           z = 0
                unsigned: s = max(|low|, |high|) / (qmax - z)     z = 2^(bits-1)

The last rule matters for images normalised to [-1, 1]: without it z = round(127.5), every pixel lies half-way between
two integers, and each implementation's last float bit decides where it rounds.

Source: Krishnamoorthi 2018, arXiv:1806.08342, sections 2.1-2.2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qat.spec import IntSpec, Scheme

EPS = 1e-12  # scale of an all-zero channel: any positive number serves, its integers are all zero


def qparams(low: Tensor, high: Tensor, spec: IntSpec) -> tuple[Tensor, Tensor]:
    """Scale (float, like `low`) and zero point (int32) of the grid that covers [low, high].

    Args:
        low: smallest value seen, scalar or `[C]`.
        high: largest value seen, shaped like `low`.
        spec: the grid.
    """
    if spec.scheme is Scheme.SYMMETRIC:
        zero = spec.symmetric_zero_point
        scale = torch.maximum(low.abs(), high.abs()) / (spec.qmax - zero)
        return scale.clamp(min=EPS), torch.full_like(scale, zero, dtype=torch.int32)
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    scale = ((high - low) / (spec.qmax - spec.qmin)).clamp(min=EPS)
    zero_point = (spec.qmin - torch.round(low / scale)).clamp(spec.qmin, spec.qmax)
    long = (spec.qmax - spec.qmin - 1) / 2  # steps; a side this long moves the scale by at most 1 / (2 * long)
    for end, steps in ((high, spec.qmax - zero_point), (-low, zero_point - spec.qmin)):
        scale = torch.where(steps >= long, torch.maximum(scale, end / steps.clamp(min=1)), scale)
    return scale, zero_point.to(torch.int32)


def tensor_range(x: Tensor, axis: int | None) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of `x`, over everything or per slice of `axis`.

    `amin` and `amax` apart: each is a vectorised reduction, while `aminmax` along a dimension is not.
    """
    if axis is None:
        return x.amin(), x.amax()
    others = [d for d in range(x.ndim) if d != axis % x.ndim]
    return (x.amin(others), x.amax(others)) if others else (x, x)
