"""Mixup: a network learns from blends of two images, and of their labels in the same shares.

    x' = l x_i + (1 - l) x_j        y' = l onehot(y_i) + (1 - l) onehot(y_j)        l ~ Beta(alpha, alpha), one a batch

j is the neighbour of i in the batch, which is shuffled anyway. Source: Zhang et al. 2018, arXiv:1710.09412, section 2.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def draw_share(alpha: float) -> float:
    """The l above, from torch's global generator on the CPU, so that a seed reaches it; 0 < alpha."""
    return float(torch.distributions.Beta(alpha, alpha, validate_args=False).sample())


def mixed(images: Tensor, labels: Tensor, share: float, classes: int) -> tuple[Tensor, Tensor]:
    """Blended images and labels.

    Args:
        images: `[N, ...]`, float.
        labels: `[N]`, class indices.
        share: the l above, of an image itself; the rest is its neighbour's.
        classes: C.

    Returns:
        Images shaped as they were; labels as shares of classes, `[N, C]`, which sum to 1.
    """
    targets = F.one_hot(labels, classes).to(images.dtype)
    return share * images + (1 - share) * images.roll(1, 0), share * targets + (1 - share) * targets.roll(1, 0)
