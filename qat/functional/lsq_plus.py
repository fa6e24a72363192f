"""LSQ+: step size and offset of a grid are trained (Bhalgat et al. 2020, arXiv:2004.09576, eq. 1-4).

    z     = clamp(round(-o / s), qmin, qmax)         o: the offset, in units of x
    q     = clamp(round(x / s) + z, qmin, qmax)      y = (q - z) * s
    dy/dx = 1 inside the grid, else 0
    dy/ds = round(x / s) - x / s inside, qmin below, qmax above      times g, see lsq.py
    dy/do = 0 inside, 1 outside                                      times g

The paper adds the offset as a float, y = q * s + o. Here it is rounded to a whole step, because integer runtimes need
zero on the grid: padding and ReLU write zeros. Inside, the offset then has no effect; outside, y is an end of the grid,
qmin * s + o or qmax * s + o, as in the paper. A value exactly on an end counts as inside: the zeros of a ReLU do not
move with the offset.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qat.functional.affine import broadcast
from qat.functional.ends import ends
from qat.functional.lsq import gradient_scale
from qat.functional.ste import Bound


def zero_point_of(offset: Tensor, scale: Tensor, qmin: int, qmax: int) -> Tensor:
    """The integer that stands for zero, int32, shaped like `scale`."""
    return torch.round(-offset / scale).clamp(qmin, qmax).to(torch.int32)


class _LearnedStepAndOffset(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, offset: Tensor, first: Bound, last: Bound, limits: tuple[int, int], g: float
    ) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.ends, ctx.limits, ctx.g = (first, last), limits, g
        return (x / scale).clamp_(first, last).round_().mul_(scale)  # type: ignore[arg-type]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, scale = ctx.saved_tensors
        (first, last), (qmin, qmax), grad = ctx.ends, ctx.limits, grads[0]
        v = x / scale
        below, above = v < first, v > last
        dx = grad.masked_fill(below | above, 0.0)
        outside = grad - dx
        ds = do = None
        if ctx.needs_input_grad[1]:
            per_value = torch.where(below, qmin, torch.where(above, qmax, v.round() - v))
            ds = (grad * per_value).sum_to_size(scale.shape) * ctx.g
        if ctx.needs_input_grad[2]:
            do = outside.sum_to_size(scale.shape) * ctx.g
        return dx, ds, do, None, None, None, None


def learned_step_and_offset(x: Tensor, scale: Tensor, offset: Tensor, qmin: int, qmax: int, *, axis: int = 0) -> Tensor:
    """`x` on the grid; the gradient reaches `x`, `scale` and `offset`.

    Args:
        x: float values of any shape.
        scale: scalar, or `[C]` along `axis`, positive.
        offset: what the lowest integer of the grid stands for when qmin = 0, in units of `x`; shaped like `scale`.
        qmin: lowest integer of the grid.
        qmax: highest integer of the grid.
        axis: the channel axis of a `[C]` scale.
    """
    with torch.no_grad():
        zero_point = zero_point_of(offset, scale, qmin, qmax)
    first, last = ends(zero_point, qmin, qmax, x, axis)
    g = gradient_scale(x.numel() // max(scale.numel(), 1), qmax)
    return _LearnedStepAndOffset.apply(
        x, broadcast(scale, x, axis), broadcast(offset, x, axis), first, last, (qmin, qmax), g
    )
