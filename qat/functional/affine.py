"""The integer grid itself, without gradients: quantize, dequantize.

    q = clamp(round(x / s) + z, qmin, qmax)     round half to even, IEEE division: what QuantizeLinear does
    y = (q - z) * s

Source: Jacob et al. 2018, arXiv:1712.05877, eq. 1; ONNX QuantizeLinear, opset 21.
"""

from __future__ import annotations

import torch
from torch import Tensor


def broadcast(parameter: Tensor, x: Tensor, axis: int) -> Tensor:
    """View a scalar or `[C]` parameter so that it broadcasts along `axis` of `x`."""
    if parameter.ndim == 0:
        return parameter
    shape = [1] * x.ndim
    shape[axis] = -1
    return parameter.view(shape)


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, *, axis: int = 0) -> Tensor:
    """Integers of `x` on the grid, as int8 when `qmin < 0`, else uint8.

    Args:
        x: float values of any shape.
        scale: scalar, or `[C]` along `axis`, positive, in units of `x` per step.
        zero_point: the integer that stands for 0.0; shaped like `scale`.
        qmin: lowest integer of the grid.
        qmax: highest integer of the grid.
        axis: the channel axis of a `[C]` scale.
    """
    steps = torch.round(x / broadcast(scale, x, axis)) + broadcast(zero_point, x, axis)
    return steps.clamp_(qmin, qmax).to(torch.int8 if qmin < 0 else torch.uint8)


def dequantize(q: Tensor, scale: Tensor, zero_point: Tensor, *, axis: int = 0) -> Tensor:
    """Float values of integers; the inverse of `quantize` on the grid."""
    return (q.to(torch.int32) - broadcast(zero_point, q, axis)).to(scale.dtype) * broadcast(scale, q, axis)
