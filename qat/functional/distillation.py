"""Distillation: a student learns the logits of its teacher (Hinton et al. 2015, arXiv:1503.02531, section 2).

    p = softmax(t / T)      q = softmax(s / T)      t, s: logits of teacher and student
    L = T^2 * KL(p || q) = T^2 * sum_c p_c (log p_c - log q_c), mean over examples
    dL/ds = T * (q - p) / N

T^2 keeps the size of the gradient when T changes: without it, it falls as 1 / T^2.
"""

from __future__ import annotations

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
