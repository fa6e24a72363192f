"""PACT: the threshold at which activations are clipped is trained (Choi et al. 2018, arXiv:1805.06085, eq. 1-3).

    y      = clamp(round(x / s), a, b) * s          s = alpha / b       a = qmin - z, b = qmax - z
    dy/dx  = 1 for a * s < x < b * s, else 0
    dy/dalpha = 1 for x >= alpha, 0 inside

The paper's activations come out of a ReLU, so z = qmin and a = 0. Where a grid has a negative side, that side keeps its
share of the range, a / b: below it dy/dalpha = a / b. alpha is the end of the longer side, `long` steps from zero, so
s = alpha / long; a mirrored grid is served by the same formula.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qat.functional.affine import broadcast
from qat.functional.ends import ends
from qat.functional.ste import Bound


def longer_side(zero_point: Tensor, qmin: int, qmax: int) -> Tensor:
    """Steps from zero to the farther end of the grid, float, shaped like `zero_point`."""
    return torch.maximum(qmax - zero_point, zero_point - qmin).float()


class _LearnedClip(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor, long: Tensor, first: Bound, last: Bound) -> Tensor:
        scale = alpha / long
        ctx.save_for_backward(x, scale, long)
        ctx.ends = (first, last)
        return (x / scale).clamp_(first, last).round_().mul_(scale)  # type: ignore[arg-type]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, long = ctx.saved_tensors
        (first, last), grad = ctx.ends, grads[0]
        v = x / scale
        below, above = v <= first, v >= last
        dx = grad.masked_fill(below | above, 0.0)
        dalpha = None
        if ctx.needs_input_grad[1]:
            # where a value is outside, grad - dx is grad and the clamp is the end that it meets
            dalpha = ((grad - dx) * v.clamp(first, last) / long).sum_to_size(scale.shape)
        return dx, dalpha, None, None, None


def learned_clip(x: Tensor, alpha: Tensor, zero_point: Tensor, qmin: int, qmax: int, *, axis: int = 0) -> Tensor:
    """`x` on the grid; the gradient reaches `x` and `alpha`.

    Args:
        x: float values of any shape.
        alpha: end of the grid's longer side, scalar or `[C]` along `axis`, positive, in units of `x`.
        zero_point: int32, shaped like `alpha`.
        qmin: lowest integer of the grid.
        qmax: highest integer of the grid.
        axis: the channel axis of a `[C]` alpha.
    """
    first, last = ends(zero_point, qmin, qmax, x, axis)
    long = longer_side(zero_point, qmin, qmax)
    return _LearnedClip.apply(x, broadcast(alpha, x, axis), broadcast(long, x, axis), first, last)
