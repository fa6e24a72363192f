"""Augmentation of whole batches: random crops and mirror images, drawn for every image on its own.

    crop    pad H/8 black pixels on each side, cut a random H x W window     (4 pixels for CIFAR's 32)
    flip    left and right exchanged with probability 1/2

Vectorised over uint8 [N, C, H, W]; draws come from torch's global generator, which `ImageBatches` seeds for each batch.
"""

from __future__ import annotations

from enum import StrEnum

import torch
from torch import Tensor
from torch.nn import functional as F


class Augmentation(StrEnum):
    """How training images are varied; calibration and evaluation never are."""

    NONE = "none"
    CROP = "crop"
    CROP_FLIP = "crop_flip"

    def __call__(self, pixels: Tensor) -> Tensor:
        """A new draw of `pixels`, [N, C, H, W], of the same shape and type."""
        if self is Augmentation.NONE:
            return pixels
        cropped = random_crop(pixels, padding=max(1, pixels.shape[-1] // 8))
        return random_flip(cropped) if self is Augmentation.CROP_FLIP else cropped


def random_crop(pixels: Tensor, padding: int) -> Tensor:
    """A window of the original size, moved by up to `padding` pixels each way; what lies outside is black (0)."""
    n, _, height, width = pixels.shape
    padded = F.pad(pixels, (padding, padding, padding, padding)).permute(0, 2, 3, 1)  # [N, H + 2p, W + 2p, C]
    top, left = torch.randint(2 * padding + 1, (2, n, 1))
    y = top + torch.arange(height)  # [N, H]
    x = left + torch.arange(width)  # [N, W]
    windows = padded[torch.arange(n).view(n, 1, 1), y.unsqueeze(2), x.unsqueeze(1)]  # [N, H, W, C]
    return windows.permute(0, 3, 1, 2)


def random_flip(pixels: Tensor) -> Tensor:
    """Every second image, on average, mirrored left to right."""
    flipped = torch.rand(len(pixels), 1, 1, 1) < 0.5
    return torch.where(flipped, pixels.flip(-1), pixels)
