"""LSQ: the gradient of a grid with respect to its step size (Esser et al. 2020, arXiv:1902.08153, eq. 1-5).

    v     = x / s
    q     = clamp(round(v), a, b)           a = qmin - z, b = qmax - z; the paper has z = 0
    y     = q * s
    dy/dx = 1 for a < v < b, else 0
    dy/ds = q - v for a < v < b, else q     times g, section 2.2

The step size sums gradients over many values, a weight over few: g = 1 / sqrt(n * qmax) brings both updates to the same
size relative to what they update, n being how many values share one step size.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from qat.functional.affine import broadcast
from qat.functional.ends import ends
from qat.functional.ste import Bound, pass_inside


class _LearnedStep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, first: Bound, last: Bound, g: float) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.ends, ctx.g = (first, last), g
        # clamping before rounding is the same: the ends are whole steps
        return (x / scale).clamp_(first, last).round_().mul_(scale)  # type: ignore[arg-type]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, scale = ctx.saved_tensors
        (first, last), grad = ctx.ends, grads[0]
        v = x / scale
        dx = pass_inside(grad, v, first, last)
        ds = None
        if ctx.needs_input_grad[1]:
            q = v.clamp(first, last).round_()
            ds = q.mul_(grad).sub_(v.mul_(dx)).sum_to_size(scale.shape).mul_(ctx.g)
        return dx, ds, None, None, None


def gradient_scale(values: int, qmax: int) -> float:
    """The g above; `values` share one step size."""
    return 1.0 / math.sqrt(max(values, 1) * qmax)


def learned_step(x: Tensor, scale: Tensor, zero_point: Tensor | None, qmin: int, qmax: int, *, axis: int = 0) -> Tensor:
    """`x` on the grid; the gradient reaches `x` and `scale`.

    Args:
        x: float values of any shape.
        scale: scalar, or `[C]` along `axis`, positive.
        zero_point: int32, shaped like `scale`; None for 0.
        qmin: lowest integer of the grid.
        qmax: highest integer of the grid.
        axis: the channel axis of a `[C]` scale.
    """
    first, last = ends(zero_point, qmin, qmax, x, axis)
    g = gradient_scale(x.numel() // max(scale.numel(), 1), qmax)
    return _LearnedStep.apply(x, broadcast(scale, x, axis), first, last, g)
