"""The evaluation transform: shorter side resized, centre cut out; on PIL images, as published top-1 was measured."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from qat.errors import ConfigError


class Interpolation(StrEnum):
    """How pixels between pixels are computed; PIL smooths before it shrinks, nearest aside."""

    NEAREST = "nearest"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"

    @property
    def mode(self) -> InterpolationMode:
        """As torchvision calls it."""
        return InterpolationMode(self.value)


def resize_and_crop(image_size: int, resize_size: int, interpolation: Interpolation) -> Callable[[Image.Image], Tensor]:
    """From a PIL image of any size to uint8 [3, image_size, image_size].

    Raises:
        ConfigError: The crop is larger than what it is taken from; it would be padded with black.
    """
    if resize_size < image_size:
        raise ConfigError(f"need data.resize_size >= data.image_size, got {resize_size} and {image_size}")
    return v2.Compose([v2.Resize(resize_size, interpolation.mode), v2.CenterCrop(image_size), v2.PILToTensor()])
