"""DoReFa: weights through a tanh, so that few outliers do not stretch the grid (Zhou et al. 2016, arXiv:1606.06160).

    t = tanh(w) / M            M = max |tanh(w)| of a channel, or of the tensor; a constant in backward
    v = t * qmax               in steps of the grid, -qmax .. qmax
    dv/dw = qmax * (1 - tanh(w)^2) / M

The paper (eq. 9) puts (t + 1) / 2 on 2^k levels between 0 and 1, which leaves zero between two levels. Here t itself is
put on the 2^k - 1 levels of a mirrored grid, because integer runtimes and padding need zero on the grid.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qat.functional.ranges import EPS


def tanh_steps(w: Tensor, qmax: int, axis: int | None) -> Tensor:
    """The v above, not rounded yet; shape of `w`.

    Args:
        w: weights.
        qmax: highest integer of the mirrored grid.
        axis: the channel axis, None to normalise by the largest value of the whole tensor.
    """
    t = torch.tanh(w)
    size = t.detach().abs()
    others = [d for d in range(w.ndim) if axis is None or d != axis % w.ndim]
    largest = size.amax(others, keepdim=True) if others else size
    return t / largest.clamp(min=EPS) * qmax
