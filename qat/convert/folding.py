"""The integers of a weight, with the BatchNorm behind it folded in.

    Q(f w; |f| s) = sign(f) Q(w; s)     per channel: the trained integers are kept
    Q(f w; s)                           per tensor: the quantizer was trained on the folded weight

with f = gamma / sqrt(var + eps).
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from qat.functional.folding import fold_bias, fold_factor, fold_integers
from qat.layers import FakeQuantWeight
from qat.spec import IntSpec

Norm = nn.modules.batchnorm._BatchNorm
Parameters = tuple[Tensor, Tensor, Tensor | None]  # integers, scale, float bias


def folded(layer: FakeQuantWeight, norm: nn.Module | None) -> Parameters:
    """Integers `[C_out, ...]`, scale (scalar or `[C_out]`) and float bias `[C_out]` of a layer with its BatchNorm.

    Args:
        layer: a fake-quant convolution or linear layer.
        norm: the BatchNorm that follows, None for none.
    """
    quantizer = layer.weight_quantizer
    weight, bias = layer.kept_weight(), layer.bias
    if norm is None:
        return quantizer.integers(weight), quantizer.scale.clone(), bias
    norm = cast(Norm, norm)
    var, mean = cast(Tensor, norm.running_var), cast(Tensor, norm.running_mean)
    gamma, beta = _affine_of(norm)
    factor = fold_factor(gamma, var, norm.eps)
    new_bias = fold_bias(bias, mean, beta, factor)
    if quantizer.shape:
        q, scale = fold_integers(quantizer.integers(weight), quantizer.scale, factor)
    else:
        q, scale = quantizer.integers(weight * layer.fold(gamma, var)), quantizer.scale.clone()
    return q, scale, new_bias


def folded_ones(norm: Norm, spec: IntSpec, spatial: int) -> Parameters:
    """A BatchNorm alone as a depthwise weight with one tap: 1, which a symmetric grid says exactly, folded.

    Args:
        norm: over C channels.
        spec: grid of the weight.
        spatial: how many dimensions the taps have.
    """
    var, mean = cast(Tensor, norm.running_var), cast(Tensor, norm.running_mean)
    gamma, beta = _affine_of(norm)
    factor = fold_factor(gamma, var, norm.eps)
    ones = torch.full((norm.num_features, 1, *[1] * spatial), spec.qmax, dtype=torch.int8, device=var.device)
    q, scale = fold_integers(ones, torch.full_like(var, 1.0 / spec.qmax), factor)
    return q, scale, fold_bias(None, mean, beta, factor)


def _affine_of(norm: Norm) -> tuple[Tensor, Tensor]:
    """Gamma and beta `[C]` of a BatchNorm, also of one that has none."""
    var = cast(Tensor, norm.running_var)
    gamma = norm.weight if norm.weight is not None else torch.ones_like(var)
    return gamma, norm.bias if norm.bias is not None else torch.zeros_like(var)
