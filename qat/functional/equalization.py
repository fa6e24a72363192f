"""Cross-layer equalization: channels of consecutive layers get the same range (Nagel et al. 2019, arXiv:1906.04721).

    W2 relu(W1 x + b1) = (W2 S) relu(S^-1 W1 x + S^-1 b1)        a ReLU lets positive factors through, eq. 3-5
    s_c = sqrt(r1_c / r2_c)                                      r: largest |weight| of the channel on either side

Afterwards both ranges are sqrt(r1_c r2_c) (eq. 11, with r2_c s_c in place of r2_c).
"""

from __future__ import annotations

import torch
from torch import Tensor


def output_range(weight: Tensor) -> Tensor:
    """Largest |weight| per output channel, `[C_out, ...] -> [C_out]`."""
    return weight.detach().abs().flatten(1).amax(1)


def by_input(weight: Tensor, groups: int) -> Tensor:
    """A view `[groups, C_out / groups, C_in / groups, S]` of a weight `[C_out, C_in / groups, ...]`."""
    return weight.view(groups, weight.shape[0] // groups, weight.shape[1], -1)


def input_range(weight: Tensor, groups: int) -> Tensor:
    """Largest |weight| per input channel, `[C_out, C_in / groups, ...] -> [C_in]`."""
    return by_input(weight.detach().abs(), groups).amax((1, 3)).flatten()


def factors(first: Tensor, second: Tensor) -> Tensor:
    """The s above; 1 for a channel that is zero on either side. Shapes: `[C]`."""
    dead = (first <= 0) | (second <= 0)
    return torch.where(dead, torch.ones_like(first), (first / second.clamp(min=torch.finfo(first.dtype).tiny)).sqrt())
