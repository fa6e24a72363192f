"""Histograms that can grow, and the range of least squared quantization error on one.

    bins     B equal ones over [-R, R), R a power of two above max |x|; exact zeros are not counted
    growing  R -> 2 R adds bins in pairs: every count stays exact, whatever the order in which values came
    error    E(low, high) = sum over bins of count * (c - Q(c; low, high))^2        c: centre of the bin

Zero lies on every grid, so it costs nothing; half of what a ReLU puts out is zero, and its bin's centre is not.
The search goes over fractions t of the observed ends, coarse then fine; for an affine grid over both together, then
over each in turn, twice. Source of the criterion: Sung et al. 2015, arXiv:1511.06488; Krishnamoorthi 2018,
arXiv:1806.08342, section 2.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from qat.functional.ranges import qparams
from qat.spec import IntSpec, Scheme

COARSE = 16  # fractions t = 1/16 .. 1: the optimum for 2 bits lies near 0.4 for a normal distribution
FINE = 4  # further ones on either side of the best, a quarter of the distance apart


def reach_of(low: Tensor, high: Tensor) -> Tensor:
    """The R above, shaped like `low`; 0 where all values are zero."""
    largest = torch.maximum(low.abs(), high.abs())
    _, exponent = torch.frexp(largest)
    return torch.where(largest > 0, torch.ldexp(torch.ones_like(largest), exponent.clamp(max=127)), largest)


def count(x: Tensor, reach: Tensor, bins: int, axis: int | None) -> Tensor:
    """Histogram of `x`, int64 `[bins]`, or `[C, bins]` per slice of `axis`.

    Args:
        x: finite values below `reach` in size.
        reach: scalar, or `[C]`.
        bins: an even number.
        axis: the channel axis, None for one histogram.
    """
    rows = x.reshape(1, -1) if axis is None else x.movedim(axis, 0).reshape(x.shape[axis], -1)
    half, channels = bins // 2, len(rows)
    scaled = rows / reach.clamp(min=torch.finfo(x.dtype).tiny).view(-1, 1)  # exact: reach is a power of two
    index = (scaled.mul_(half).floor_() + half).clamp_(0, bins - 1).long()
    index += torch.arange(channels, device=x.device)[:, None] * bins
    found = torch.bincount(index[rows != 0], minlength=channels * bins)
    return found.view(*reach.shape, bins)


def widen(counts: Tensor, reach: Tensor, new: Tensor) -> Tensor:
    """`counts` `[..., B]` over `[-reach, reach)` as a histogram over `[-new, new)`; B is a multiple of 4.

    Args:
        counts: histograms.
        reach: powers of two, or 0 for an empty histogram; `[...]`.
        new: powers of two, at least `reach`; `[...]`.
    """
    quarter = counts.shape[-1] // 4
    for _ in range(quarter.bit_length() + 2):  # from then on everything is in the two bins beside zero, and stays there
        grows = (reach > 0) & (reach < new)
        if not bool(grows.any()):
            break
        pairs = counts.unflatten(-1, (-1, 2)).sum(-1)
        counts = torch.where(grows[..., None], torch.nn.functional.pad(pairs, (quarter, quarter)), counts)
        reach = torch.where(grows, reach * 2, reach)
    return counts


def centers(reach: Tensor, bins: int) -> Tensor:
    """Centres of the bins, `[..., bins]`."""
    half = bins // 2
    return (torch.arange(-half, half, device=reach.device) + 0.5) / half * reach[..., None]


def squared_error(counts: Tensor, values: Tensor, low: Tensor, high: Tensor, spec: IntSpec) -> Tensor:
    """The E above, `[...]`.

    Args:
        counts: how often each value occurs, `[..., B]`.
        values: `[..., B]`.
        low: low ends, `[...]`.
        high: high ends, `[...]`.
        spec: the grid between them.
    """
    scale, zero = (p[..., None] for p in qparams(low, high, spec))
    first, last = (spec.qmin - zero).to(values.dtype), (spec.qmax - zero).to(values.dtype)
    off = (values / scale).round_().clamp_(first, last).mul_(scale).sub_(values)
    return off.square_().mul_(counts).sum(-1)


def best_range(counts: Tensor, reach: Tensor, low: Tensor, high: Tensor, spec: IntSpec) -> tuple[Tensor, Tensor]:
    """The range within [low, high] of least squared error; ties go to the wider one.

    Args:
        counts: histograms, `[..., B]`.
        reach: their R, `[...]`.
        low: smallest values seen, `[...]`.
        high: largest values seen, `[...]`.
        spec: the grid.
    """
    values, weights = centers(reach, counts.shape[-1]), counts.to(low.dtype)

    def error(low: Tensor, high: Tensor) -> Tensor:
        return squared_error(weights, values, low, high, spec)

    if spec.scheme is Scheme.SYMMETRIC:
        size = torch.maximum(low.abs(), high.abs())
        size = size * _search(lambda t: error(-t * size, t * size), torch.ones_like(size))
        return torch.maximum(low, -size), torch.minimum(high, size)
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    t_low = t_high = _search(lambda t: error(t * low, t * high), torch.ones_like(low))
    for _ in range(2):  # the best zero point moves with either end
        t_high = _search(partial(_high_alone, error, low, high, t_low), t_high)
        t_low = _search(partial(_low_alone, error, low, high, t_high), t_low)
    return t_low * low, t_high * high


Error = Callable[[Tensor, Tensor], Tensor]


def _high_alone(error: Error, low: Tensor, high: Tensor, t_low: Tensor, t: Tensor) -> Tensor:
    return error(t_low * low, t * high)


def _low_alone(error: Error, low: Tensor, high: Tensor, t_high: Tensor, t: Tensor) -> Tensor:
    return error(t * low, t_high * high)


def _search(error: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """The fraction t in (0, 1] of least error, elementwise; `start` when no other is better."""
    best, least = start, error(start)

    def consider(t: Tensor) -> None:
        nonlocal best, least
        e = error(t)
        best, least = torch.where(e < least, t, best), torch.minimum(e, least)

    for step in range(COARSE, 0, -1):
        consider(torch.full_like(start, step / COARSE))
    middle = best
    for step in (s for s in range(-FINE + 1, FINE) if s):
        consider((middle + step / (FINE * COARSE)).clamp(1 / COARSE / FINE, 1.0))
    return best
