"""Weights that jump between two integers at every step: a loss that damps them, and a rule that freezes them.

    damping   L = sum of (clamp(w, qmin * s, qmax * s) - Q(w))^2, no gradient through Q       eq. 8, times lambda
    freezing  o = 1 where the integer changed, opposite in sign to its change before           eq. 9-10
              f += m * (o - f)            frequency of oscillations
              a += m * (q - a)            average integer
              where f > threshold: the weight stays at round(a) * s from then on

Near a threshold of rounding the straight-through gradient pushes a weight back and forth; its integer at the end is a
matter of chance, and BatchNorm's statistics lag behind. Source: Nagel et al. 2022, arXiv:2203.11086, section 4. Early
in training weights should still find their way, so lambda grows and the threshold falls, along half a cosine.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Oscillation(NamedTuple):
    """What is remembered of a weight, each tensor shaped like it.

    Attributes:
        integers: at the last step, float.
        direction: sign of their last change, 0 before the first.
        frequency: the f above.
        average: the a above.
        frozen: whether the weight stays.
    """

    integers: Tensor
    direction: Tensor
    frequency: Tensor
    average: Tensor
    frozen: Tensor

    @classmethod
    def start(cls, integers: Tensor) -> Oscillation:
        """Before the first step; the tensors are new."""
        q = integers.detach().float().clone()
        return cls(q, torch.zeros_like(q), torch.zeros_like(q), q.clone(), torch.zeros_like(q, dtype=torch.bool))


def annealed(first: float, last: float, progress: float) -> float:
    """From `first` to `last` along half a cosine, at `progress` in 0 .. 1."""
    return last + (first - last) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2


def damping_loss(weight: Tensor, quantized: Tensor, scale: Tensor, qmin: int, qmax: int) -> Tensor:
    """The L above, a scalar; its gradient pulls a weight to the middle of its step: 2 (w - Q(w)) inside the grid.

    Args:
        weight: what is trained.
        quantized: the weight on its grid.
        scale: broadcasts against `weight`.
        qmin: lowest integer of the grid.
        qmax: highest integer of the grid.
    """
    s = scale.detach()
    return (torch.clamp(weight, qmin * s, qmax * s) - quantized.detach()).square().sum()


@torch.no_grad()
def follow(state: Oscillation, integers: Tensor, *, momentum: float, threshold: float) -> Oscillation:
    """What is remembered after a step that led to `integers`.

    Args:
        state: before the step.
        integers: after it, shaped like the weight.
        momentum: the m above, weight of one step, in (0, 1].
        threshold: of the frequency; 1 never freezes.
    """
    q = integers.float()
    sign = torch.sign(q - state.integers)
    oscillated = (sign != 0) & (sign == -state.direction)
    frequency = state.frequency + momentum * (oscillated.float() - state.frequency)
    average = torch.where(state.frozen, state.average, state.average + momentum * (q - state.average))
    direction = torch.where(sign != 0, sign, state.direction)
    return Oscillation(q, direction, frequency, average, state.frozen | (frequency > threshold))


@torch.no_grad()
def freeze_(weight: Tensor, state: Oscillation, scale: Tensor) -> Tensor:
    """Put the frozen weights onto their average integer, in place; `scale` broadcasts against `weight`."""
    return weight.copy_(torch.where(state.frozen, state.average.round().to(weight.dtype) * scale, weight))
