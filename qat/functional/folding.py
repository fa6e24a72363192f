"""BatchNorm folded into the integers of the convolution before it, exactly.

    f_c = gamma_c / sqrt(var_c + eps)                              the model's own eps
    Q(f_c * w_c; |f_c| * s_c) = sign(f_c) * Q(w_c; s_c)            symmetric, narrow, one scale per output channel
    bias_c = (b_c - mean_c) * f_c + beta_c

The integers that were trained are the integers that are deployed, mirrored where gamma < 0. A dead channel (f = 0)
contributes nothing: its integers become zero and its scale any positive number.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qat.functional.ranges import EPS

BIAS_LIMIT = 2**30  # int32 bias, half the type's range: the other half is headroom for the accumulated products


def fold_factor(weight: Tensor, var: Tensor, eps: float) -> Tensor:
    """F = gamma / sqrt(var + eps), `[C]`."""
    return weight * torch.rsqrt(var + eps)


def fold_integers(q: Tensor, scale: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """Weight integers `[C, ...]` and scales `[C]` after folding the factors `[C]`.

    Args:
        q: int8 integers of a symmetric narrow grid.
        scale: their scales before folding.
        factor: fold factors; 0 marks a dead channel.
    """
    sign = torch.sign(factor).to(torch.int8).view(-1, *[1] * (q.ndim - 1))
    return q * sign, (scale * factor.abs()).clamp(min=EPS)


def fold_bias(bias: Tensor | None, mean: Tensor, beta: Tensor, factor: Tensor) -> Tensor:
    """Bias `[C]` of the folded layer; `bias` is that of the convolution, None for none."""
    return ((0.0 if bias is None else bias) - mean) * factor + beta


def fit_bias(q: Tensor, scale: Tensor, bias: Tensor, input_scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Weight integers, scales and int32 bias such that the bias fits its type at scale `input_scale * scale`.

    A channel of tiny weights and a large bias would overflow; its scale is raised just enough, and its integers are
    rounded again. No ordinary channel is touched.

    Args:
        q: weight integers `[C, ...]`.
        scale: weight scales `[C]`.
        bias: float bias `[C]`.
        input_scale: scale of the layer's input.
    """
    need = bias.abs().double() / (input_scale * BIAS_LIMIT)
    raised = need > scale
    if raised.any():
        new = torch.where(raised, need.to(scale.dtype) * 2, scale)
        ratio = (scale / new).view(-1, *[1] * (q.ndim - 1))
        q, scale = torch.round(q * ratio).to(q.dtype), new
    steps = torch.round(bias.double() / (scale.double() * input_scale))
    return q, scale, steps.to(torch.int32)


def round_bias(bias: Tensor, step: Tensor) -> Tensor:
    """The bias `[C]` that an int32 at scale `step` says; the gradient passes straight through.

    The error is at most half of `step = s_x * s_w`, but the same for a whole channel: without this, a share of the next
    layer's integers of that size falls to the other side, in every layer anew.
    """
    steps = step.detach().double().clamp(min=EPS**2)  # a trained scale learns from products, not from the bias
    rounded = (torch.round(bias.detach().double() / steps) * steps).to(bias.dtype)
    return bias + (rounded - bias.detach())
