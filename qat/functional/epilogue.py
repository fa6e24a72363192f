"""BatchNorm, clamping activation and fake quantization as one function: what follows nearly every convolution.

    m, v = mean and variance of x per channel (training), or the running ones
    n    = (x - m) / sqrt(v + eps) * gamma + beta
    y    = clamp(round(n / s), a, b) * s                       a, b: see ste.py
    backward: n again from x; g = dy where n is inside the open interval; then BatchNorm's own backward

The BatchNorm output n is written once, turned into y in place, and computed again in backward, so the function keeps
exactly what BatchNorm itself keeps (x and the statistics). A chain of modules would keep n as well: half as much again.

On a CPU the statistics are not BatchNorm's own. Those are a scalar loop in float64 over every value, a sixth of a
float step of mobilenet_v2; here the rows of x are summed by vectorised operators, and only their sums in float64:

    d = sum (x - k) / count    m = k + d    v = sum (x - k)^2 / count - d^2

with k = 0, or near m where a channel lies too far from zero: equal to BatchNorm's within float32's rounding (FAR).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from qat.functional.ste import Clamp, Grid, grid, pass_inside_, snap_

Observe = Callable[[Tensor], None]

SHORT_ROW = 16  # elements; below, the sums of rows are no faster than BatchNorm's own loop
FAR = 16.0  # (d / deviation)^2 up to which sum (x - k)^2 / count - d^2 loses at most 4 of float32's 24 bits


class Norm(NamedTuple):
    """A BatchNorm's tensors and numbers, all `[C]`; `batch_stats` says whose mean and variance are used."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    momentum: float
    eps: float
    batch_stats: bool


class Quant(NamedTuple):
    """A tensor-wise quantizer's tensors and ends; see `ste.grid`."""

    scale: Tensor
    zero_point: Tensor
    qmin: int
    qmax: int


def rows(x: Tensor) -> Tensor:
    """`[N, C, ...] -> [N, C, S]`."""
    return x.flatten(2) if x.ndim > 2 else x.unsqueeze(2)


def row_length(x: Tensor) -> int:
    """S of `rows`."""
    return math.prod(x.shape[2:])


def batch_stats(x: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of `x` per channel, `[C]`; moves the running ones as BatchNorm does."""
    fits = x.device.type == "cpu" and x.is_contiguous() and row_length(x) >= SHORT_ROW
    if not fits or torch.compiler.is_compiling():
        return own_stats(x, norm)
    r = rows(x)
    stats = stats_of_sums(x, norm, r.sum(2), torch.linalg.vector_norm(r, dim=2).square_())
    if stats is None:
        shift = near_mean(r)
        centered = r - shift[:, None]
        stats = stats_of_sums(x, norm, centered.sum(2), torch.linalg.vector_norm(centered, dim=2).square_(), shift)
    return stats or own_stats(x, norm)


def near_mean(r: Tensor) -> Tensor:
    """A value near the mean of each channel, `[N, C, S] -> [C]`: the mean in the first example."""
    return r[0].mean(1)


def stats_of_sums(
    x: Tensor, norm: Norm, sums: Tensor, squares: Tensor, shift: Tensor | None = None
) -> tuple[Tensor, Tensor] | None:
    """`batch_stats` from the sums of each row of `x - shift` and of its squares, both `[N, C]`; shift is `[C]`.

    None when they would be inexact: a channel whose mean is far from its shift.
    """
    count = x.numel() // x.shape[1]
    mean = sums.double().sum(0).div_(count)
    var = squares.double().sum(0).div_(count).sub_(mean.square())
    if not (mean.square() <= FAR * var).all():
        return None
    if shift is not None:
        mean += shift
    mean, var = mean.to(x.dtype), var.to(x.dtype)
    norm.running_mean.lerp_(mean, norm.momentum)
    norm.running_var.lerp_(var * (count / (count - 1)), norm.momentum)
    return mean, var


def own_stats(x: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
    """`batch_stats` by BatchNorm's own loop, whatever the values."""
    return torch.ops.aten.batch_norm_update_stats(x, norm.running_mean, norm.running_var, norm.momentum)


def normalize(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """BatchNorm with given statistics; the same call in forward and backward, so both see the same bits."""
    return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)


def keep(ctx: Any, norm: Norm, to: Grid, *saved: Tensor) -> None:
    """Save what `NormActQuant.backward` reads: x, weight, bias, mean, var; the bounds and BatchNorm's numbers."""
    ctx.save_for_backward(*saved)
    ctx.bounds, ctx.eps, ctx.batch_stats = (to.open_low, to.open_high), norm.eps, norm.batch_stats


class NormActQuant(torch.autograd.Function):
    """The eager function; regional.py replaces its forward."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, norm: Norm, activation: Clamp, quant: Quant,
        observe: Observe | None,
    ) -> Tensor:  # fmt: skip
        mean, var = batch_stats(x, norm) if norm.batch_stats else (norm.running_mean, norm.running_var)
        y = normalize(x, mean, var, weight, bias, norm.eps)
        if observe is not None:
            observe(y)  # moves quant.scale and quant.zero_point, before they are read
        to = grid(*quant, activation)
        keep(ctx, norm, to, x, weight, bias, mean, var)
        return snap_(y, to)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        x, weight, bias, mean, var = ctx.saved_tensors
        grad = pass_inside_(grads[0], normalize(x, mean, var, weight, bias, ctx.eps), *ctx.bounds)
        invstd = torch.rsqrt(var + ctx.eps)
        dx, dweight, dbias = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, mean, var, mean, invstd, ctx.batch_stats, ctx.eps, list(ctx.needs_input_grad[:3])
        )
        return dx, dweight, dbias, None, None, None, None


def norm_act_quant(x: Tensor, norm: Norm, activation: Clamp, quant: Quant, observe: Observe | None = None) -> Tensor:
    """BatchNorm, activation and fake quantization of `x`.

    Args:
        x: `[N, C, ...]`, a convolution's output.
        norm: the BatchNorm; its running statistics move when `batch_stats`.
        activation: the clamp between BatchNorm and quantizer.
        quant: the quantizer's tensors.
        observe: shown BatchNorm's output before the scale is read; None when ranges are frozen.
    """
    return NormActQuant.apply(x, norm.weight, norm.bias, norm, activation, quant, observe)
