"""Fake quantization with a straight-through gradient, behind a clamping activation.

    y     = clamp(round(x / s), a, b) * s
    a, b  = the grid's ends in steps from zero, qmin - z and qmax - z, narrowed by the activation:
            ReLU raises a to 0, ReLU6 lowers b to round(6 / s); both commute with rounding, so that
            y = fake_quantize(activation(x)) without a pass of its own
    dy/dx = 1 where x rounds to a step that needs no clamp, (a - 1/2) s < x < (b + 1/2) s,
            and where the activation itself lets the gradient through (0 < x, x < 6); else 0

Source: Bengio et al. 2013, arXiv:1308.3432; Jacob et al. 2018, arXiv:1712.05877, eq. 12. The gradient is that of
`torch.fake_quantize_per_tensor_affine`, which takes 30 times as long on a CPU (docs/log.md).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qat.functional.affine import broadcast


class Clamp(NamedTuple):
    """An activation that is a clamp: identity, ReLU and ReLU6 are all of this form."""

    low: float
    high: float


IDENTITY = Clamp(-math.inf, math.inf)
RELU = Clamp(0.0, math.inf)
RELU6 = Clamp(0.0, 6.0)

Bound = float | Tensor


class Grid(NamedTuple):
    """Where a fake quantizer may land: scale, and both ends in steps and in units of the input.

    `first` and `last` are the ends `a` and `b` above; `open_low` and `open_high` the open interval in which the
    gradient passes. Python floats on a CPU, where a scalar clamp is 16 times as fast as one with tensors; tensors on
    an accelerator, where reading a number would wait for the device.
    """

    scale: Tensor
    first: Bound
    last: Bound
    open_low: Bound
    open_high: Bound


def grid(scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, activation: Clamp = IDENTITY) -> Grid:
    """The grid of one tensor-wise quantizer behind `activation`. Shapes: scale and zero point are scalars."""
    if scale.device.type == "cpu" and not torch.compiler.is_compiling():
        s, z = scale.item(), zero_point.item()
        first, last = float(qmin - z), float(qmax - z)
        known = math.isfinite(s)  # NaN goes on to the loss, where the step and the module are named
        if known and activation.low > -math.inf:
            first = max(first, float(round(activation.low / s)))
        if known and activation.high < math.inf:
            last = min(last, float(round(activation.high / s)))
        return Grid(scale, first, last, max((first - 0.5) * s, activation.low), min((last + 0.5) * s, activation.high))
    first_t, last_t = (qmin - zero_point).to(scale.dtype), (qmax - zero_point).to(scale.dtype)
    if activation.low > -math.inf:
        first_t = torch.maximum(first_t, torch.round(activation.low / scale))
    if activation.high < math.inf:
        last_t = torch.minimum(last_t, torch.round(activation.high / scale))
    open_low = ((first_t - 0.5) * scale).clamp(min=activation.low)
    open_high = ((last_t + 0.5) * scale).clamp(max=activation.high)
    return Grid(scale, first_t, last_t, open_low, open_high)


def packed(to: Grid) -> Tensor:
    """`to` as one tensor `[5]`, in the order of its fields: what a compiled function takes without a new compile."""
    if isinstance(to.first, float):
        return torch.tensor([to.scale.item(), *to[1:]])
    return torch.stack(to)  # type: ignore[arg-type]


def snap_(x: Tensor, to: Grid) -> Tensor:
    """Put `x` onto the grid, in place: four vectorised passes."""
    return x.div_(to.scale).clamp_(to.first, to.last).round_().mul_(to.scale)  # type: ignore[arg-type]


def pass_inside(grad: Tensor, x: Tensor, low: Bound, high: Bound) -> Tensor:
    """The gradient where low < x < high, else 0. One fused pass when the bounds are numbers."""
    if isinstance(low, float) and isinstance(high, float):
        return torch.ops.aten.hardtanh_backward(grad, x, low, high)
    return grad * ((x > low) & (x < high))


def pass_inside_(grad: Tensor, x: Tensor, low: Bound, high: Bound) -> Tensor:
    """`pass_inside` that overwrites `x`, which the caller computed for it alone: a page fault saved per 4 KiB."""
    if isinstance(low, float) and isinstance(high, float):
        return torch.ops.aten.hardtanh_backward.grad_input(grad, x, low, high, grad_input=x)
    return grad * ((x > low) & (x < high))


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, to: Grid) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bounds = (to.open_low, to.open_high)
        # clamping before rounding is the same: the ends are whole steps
        return (x / to.scale).clamp_(to.first, to.last).round_().mul_(to.scale)  # type: ignore[arg-type]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return pass_inside(grads[0], x, *ctx.bounds), None


def fake_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, *, activation: Clamp = IDENTITY
) -> Tensor:
    """`activation(x)` on a tensor-wise grid, with the straight-through gradient.

    Args:
        x: float values of any shape.
        scale: scalar, positive.
        zero_point: scalar int32.
        qmin: lowest integer of the grid.
        qmax: highest integer of the grid.
        activation: the clamp in front of the quantizer.
    """
    return _FakeQuantize.apply(x, grid(scale, zero_point, qmin, qmax, activation))


class _FakeQuantizeChannels(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, first: Bound, last: Bound, clips: bool) -> Tensor:
        ctx.clips, ctx.ends = clips, (first, last)
        if clips:
            ctx.save_for_backward(x, scale)
        return (x / scale).clamp_(first, last).round_().mul_(scale)  # type: ignore[arg-type]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.clips:
            return grads[0], None, None, None, None
        x, scale = ctx.saved_tensors
        first, last = ctx.ends
        if isinstance(first, float):
            return pass_inside_(grads[0], x / scale, first - 0.5, last + 0.5), None, None, None, None
        inside = (x > (first - 0.5) * scale) & (x < (last + 0.5) * scale)
        return grads[0] * inside, None, None, None, None


def fake_quantize_channels(
    x: Tensor, scale: Tensor, zero_point: Tensor | None, qmin: int, qmax: int, *, axis: int = 0, clips: bool = True
) -> Tensor:
    """`x` on a grid with one scale per slice of `axis` (or one for all), with the straight-through gradient.

    Args:
        x: weights, `[C_out, ...]` for `axis=0`.
        scale: `[C]` or scalar, positive.
        zero_point: int32, shaped like `scale`; None for a symmetric signed grid, whose ends are plain numbers.
        qmin: lowest integer of the grid.
        qmax: highest integer of the grid.
        axis: the channel axis.
        clips: False when the range was just taken from `x`: nothing is outside, so no mask is needed.
    """
    first: Bound
    last: Bound
    if zero_point is None:
        first, last = float(qmin), float(qmax)
    else:
        steps = broadcast(zero_point, x, axis)
        first, last = (qmin - steps).to(x.dtype), (qmax - steps).to(x.dtype)
    return _FakeQuantizeChannels.apply(x, broadcast(scale, x, axis), first, last, clips)
