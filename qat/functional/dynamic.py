"""Dynamic quantization: the grid of an activation follows from the activation itself, at every call.

    low = min(x, 0), high = max(x, 0)       over the whole tensor: one grid for all examples of a batch
    s = (high - low) / 255                  1 where x is all zeros
    z = round(clamp(-low / s, 0, 255))      half to even
    q = clamp(round(x / s) + z, 0, 255)     uint8
    y = sum_k (q[k] - z) w[k] * (s * s_w)   the sum in integers, the rest in float32, in this order

These are DynamicQuantizeLinear and MatMulInteger as onnxruntime computes them, to the bit, fused or not.
Source: ONNX DynamicQuantizeLinear (opset 11), MatMulInteger (opset 10).
"""

from __future__ import annotations

import torch
from torch import Tensor

QMAX = 255  # DynamicQuantizeLinear knows no other grid


def dynamic_grid(x: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero point, float32 scalars both, of the uint8 grid that covers `x`."""
    low, high = x.amin().clamp(max=0.0), x.amax().clamp(min=0.0)
    scale = torch.where(low == high, torch.ones_like(low), (high - low) / QMAX)
    return scale, torch.round((-low / scale).clamp(0, QMAX))


def dynamic_quantize(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Integers of `x`, uint8 in its shape, with scale and zero point as float32 scalars."""
    scale, zero_point = dynamic_grid(x)
    q = (torch.round(x / scale) + zero_point).clamp(0, QMAX)
    return q.to(torch.uint8), scale, zero_point


def integer_product(q: Tensor, zero_point: Tensor, weight: Tensor) -> Tensor:
    """`(q - z) w` as int32 `[..., C_out]`, of integers `[..., C_in]` and `[C_in, C_out]`."""
    # float64 holds every such sum exactly, and has a fast product; integers have none in torch
    return ((q.double() - zero_point) @ weight.double()).to(torch.int32)


def dynamic_product(x: Tensor, weight: Tensor, weight_scale: Tensor) -> Tensor:
    """`x w` on integers, `[..., C_in]` float32 to `[..., C_out]`.

    Args:
        x: activations; the grid is of all of them together.
        weight: int8 `[C_in, C_out]`, as MatMulInteger reads it.
        weight_scale: `[C_out]`.
    """
    q, scale, zero_point = dynamic_quantize(x)
    return integer_product(q, zero_point, weight).float() * (scale * weight_scale)
