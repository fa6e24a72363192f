"""AdaRound: whether each weight is rounded up or down is learned (Nagel et al. 2020, arXiv:2004.10568, eq. 21-24).

    h(V)    = clamp(sigmoid(V) * (zeta - gamma) + gamma, 0, 1)      zeta = 1.1, gamma = -0.1
    W~      = s * clamp(floor(W / s) + h(V), qmin, qmax)            0: down, 1: up
    penalty = sum of 1 - |2 h(V) - 1|^beta                          0 when all are decided

The stretched sigmoid reaches 0 and 1. beta falls from 20, where only the middle is penalised, to 2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

ZETA, GAMMA = 1.1, -0.1
BETA_START, BETA_END = 20.0, 2.0
WARMUP = 0.2  # share of the iterations without penalty


def soft_step(v: Tensor) -> Tensor:
    """The h above."""
    return (torch.sigmoid(v) * (ZETA - GAMMA) + GAMMA).clamp(0.0, 1.0)


def undecided(weight: Tensor, scale: Tensor) -> Tensor:
    """V such that W~ is W itself; `scale` broadcasts against `weight`."""
    steps = weight / scale
    part = steps - steps.floor()
    share = (part - GAMMA) / (ZETA - GAMMA)  # within (0, 1), as GAMMA < 0 <= part < 1 < ZETA
    return torch.log(share / (1.0 - share))


def soft_weight(weight: Tensor, v: Tensor, scale: Tensor, qmin: int, qmax: int) -> Tensor:
    """The W~ above, with a gradient for V; `scale` broadcasts against `weight`."""
    return ((weight / scale).floor() + soft_step(v)).clamp(qmin, qmax) * scale


def penalty(v: Tensor, beta: float) -> Tensor:
    """The penalty above, a scalar."""
    return (1.0 - (2.0 * soft_step(v) - 1.0).abs().pow(beta)).sum()


def beta_at(progress: float) -> float | None:
    """Beta after this share of the iterations; None while there is no penalty."""
    if progress < WARMUP:
        return None
    rest = (progress - WARMUP) / (1.0 - WARMUP)
    return BETA_END + 0.5 * (BETA_START - BETA_END) * (1.0 + math.cos(math.pi * rest))
