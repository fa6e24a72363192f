"""BatchNorm over the batches of all processes together, on any device; torch's own runs on accelerators alone.

    n, m, v      values in a channel of this process, their mean and variance
    N = sum n    M = sum n m / N    V = sum n (v + m^2) / N - M^2    sums over processes, in float64
    y = (x - M) / sqrt(V + eps) * gamma + beta

    dbeta = sum dy    dgamma = sum dy xhat    of this process: DDP averages the gradients of parameters
    dx = gamma / sqrt(V + eps) * (dy - (sum dbeta + xhat * sum dgamma) / N)

Source: Ioffe and Szegedy 2015, arXiv:1502.03167, section 3, with sums over processes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from qat.functional.across import sum_across
from qat.functional.epilogue import Norm, normalize


class _SyncedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, norm: Norm) -> Tensor:
        mean, var, count = stats_across(x, norm)
        ctx.save_for_backward(x, weight, mean, var, count)
        ctx.eps = norm.eps
        return normalize(x, mean, var, weight, bias, norm.eps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var, count = ctx.saved_tensors
        (dy,) = grads
        shape = (1, -1, *[1] * (x.ndim - 2))
        others = [d for d in range(x.ndim) if d != 1]
        invstd = torch.rsqrt(var + ctx.eps)
        xhat = (x - mean.view(shape)) * invstd.view(shape)
        dbias, dweight = dy.sum(others), (dy * xhat).sum(others)
        sums = sum_across(torch.stack((dbias, dweight))) / count
        dx = (dy - sums[0].view(shape) - xhat * sums[1].view(shape)) * (weight * invstd).view(shape)
        return dx, dweight, dbias, None


def synced_norm(x: Tensor, norm: Norm) -> Tensor:
    """BatchNorm of `x` by the statistics of all processes' batches; moves the running ones alike in all of them.

    Args:
        x: `[N, C, ...]`, float32; N may differ between processes.
        norm: of this layer, in training.
    """
    return _SyncedNorm.apply(x, norm.weight, norm.bias, norm)


def stats_across(x: Tensor, norm: Norm) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance per channel, `[C]`, and the N above, a scalar; moves the running statistics."""
    own = math.prod((x.shape[0], *x.shape[2:]))
    var, mean = torch.var_mean(x.detach(), [d for d in range(x.ndim) if d != 1], correction=0)
    m = mean.double()
    n = torch.full_like(m, own)
    total, sums, squares = sum_across(torch.stack((n, n * m, n * (var.double() + m.square()))))
    count = total[0]
    exact = sums / count
    mean, var = exact.to(x.dtype), (squares / count - exact.square()).clamp(min=0).to(x.dtype)
    norm.running_mean.lerp_(mean, norm.momentum)
    norm.running_var.lerp_(var * (count / (count - 1)), norm.momentum)
    return mean, var, count
