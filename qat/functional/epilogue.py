"""BatchNorm, clamping activation and fake quantization as one function: what follows nearly every convolution.

    m, v = mean and variance of x per channel (training), or the running ones
    n    = (x - m) / sqrt(v + eps) * gamma + beta
    y    = clamp(round(n / s), a, b) * s                       a, b: see ste.py
    backward: n again from x; g = dy where n is inside the open interval; then BatchNorm's own backward

The BatchNorm output n is written once, turned into y in place, and computed again in backward, so the function keeps
exactly what BatchNorm itself keeps (x and the statistics). A chain of modules would keep n as well: half as much again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from qat.functional.ste import Clamp, Grid, grid, pass_inside, snap_

Observe = Callable[[Tensor], None]


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


def normalize(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """BatchNorm with given statistics; the same call in forward and backward, so both see the same bits."""
    return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)


class _NormActQuant(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, norm: Norm, activation: Clamp, quant: Quant,
        observe: Observe | None,
    ) -> Tensor:  # fmt: skip
        if norm.batch_stats:
            mean, var = torch.ops.aten.batch_norm_update_stats(x, norm.running_mean, norm.running_var, norm.momentum)
        else:
            mean, var = norm.running_mean, norm.running_var
        y = normalize(x, mean, var, weight, bias, norm.eps)
        if observe is not None:
            observe(y)  # moves quant.scale and quant.zero_point, before they are read
        to = grid(*quant, activation)
        ctx.save_for_backward(x, weight, bias, mean, var)
        ctx.eps, ctx.batch_stats = norm.eps, norm.batch_stats
        ctx.bounds = (to.open_low, to.open_high)
        return snap_(y, to)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, var = ctx.saved_tensors
        grad = pass_inside(grads[0], normalize(x, mean, var, weight, bias, ctx.eps), *ctx.bounds)
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
    return _NormActQuant.apply(x, norm.weight, norm.bias, norm, activation, quant, observe)


def grid_of(quant: Quant, activation: Clamp) -> Grid:
    """The grid that `norm_act_quant` lands on."""
    return grid(*quant, activation)
