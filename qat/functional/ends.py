"""Where a grid ends, in steps from zero: a = qmin - z, b = qmax - z."""

from __future__ import annotations

import torch
from torch import Tensor

from qat.functional.affine import broadcast
from qat.functional.ste import Bound


def ends(zero_point: Tensor | None, qmin: int, qmax: int, x: Tensor, axis: int = 0) -> tuple[Bound, Bound]:
    """Both ends, to clamp `x / s` with.

    Python floats where that costs no wait for a device (see `ste.Grid`), else tensors that broadcast against `x`.

    Args:
        zero_point: scalar, or `[C]` along `axis`; None for 0.
        qmin: lowest integer of the grid.
        qmax: highest integer of the grid.
        x: what will be clamped.
        axis: the channel axis of a `[C]` zero point.
    """
    if zero_point is None:
        return float(qmin), float(qmax)
    if zero_point.ndim == 0 and zero_point.device.type == "cpu" and not torch.compiler.is_compiling():
        zero = int(zero_point)
        return float(qmin - zero), float(qmax - zero)
    zeros = broadcast(zero_point, x, axis)
    return (qmin - zeros).to(x.dtype), (qmax - zeros).to(x.dtype)
