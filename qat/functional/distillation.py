"""Distillation: a student learns the logits of its teacher (Hinton et al. 2015, arXiv:1503.02531, section 2).

    p = softmax(t / T)      q = softmax(s / T)      t, s: logits of teacher and student
    L = T^2 * KL(p || q) = T^2 * sum_c p_c (log p_c - log q_c), mean over examples
    dL/ds = T * (q - p) / N

T^2 keeps the size of the gradient when T changes: without it, it falls as 1 / T^2.

Or what it computes on the way (FitNets: Romero et al. 2015, arXiv:1412.6550, eq. 3, without the regressor, as both have
the same shape), relative to the size of that, so that every layer counts alike:

    L = sum (s - t)^2 / sum t^2          dL/ds = 2 (s - t) / sum t^2        s, t: a value of student and teacher
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """The L above, a scalar; no gradient reaches the teacher.

    Args:
        student: logits [N, C].
        teacher: logits [N, C].
        temperature: the T above, > 0; the higher, the more the small probabilities count.
    """
    q = F.log_softmax(student / temperature, dim=1)
    p = F.log_softmax(teacher.detach() / temperature, dim=1)
    return temperature**2 * F.kl_div(q, p, reduction="batchmean", log_target=True)


def feature_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """The second L above, a scalar; no gradient reaches the teacher.

    Args:
        student: of any shape.
        teacher: of the same.
    """
    teacher = teacher.detach()
    return (student - teacher).square().sum() / teacher.square().sum().clamp(min=torch.finfo(teacher.dtype).tiny)
