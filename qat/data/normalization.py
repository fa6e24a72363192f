"""Normalization: uint8 pixels to the floats that a model was trained on.

y = (x / 255 - mean_c) / std_c        x uint8 [N, 3, H, W], y float32 [N, 3, H, W]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qat.errors import ConfigError

CHANNELS = 3
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Normalization:
    """Mean and standard deviation of each channel, in units of the full pixel range (0 to 1)."""

    mean: Sequence[float]
    std: Sequence[float]

    def __post_init__(self) -> None:
        """Check the values and turn whatever sequence came in (a list from YAML) into tuples of floats."""
        for name in ("mean", "std"):
            given = getattr(self, name)
            try:
                values = tuple(float(value) for value in given)
            except (TypeError, ValueError):
                values = ()
            if len(values) != CHANNELS:
                raise ConfigError(f"data.{name} must be {CHANNELS} numbers (red, green, blue), got {given!r}")
            object.__setattr__(self, name, values)
        if not all(value > 0 for value in self.std):
            raise ConfigError(f"data.std must be > 0 in every channel, got {list(self.std)}")

    @classmethod
    def of(
        cls,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        *,
        usual: tuple[Sequence[float], Sequence[float]] = (IMAGENET_MEAN, IMAGENET_STD),
    ) -> Normalization:
        """As given; what is None is the usual one of the data set."""
        return cls(mean=usual[0] if mean is None else mean, std=usual[1] if std is None else std)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Pixels, uint8 [N, 3, H, W], as a contiguous float32 tensor of the same shape."""
        scale = torch.tensor([1 / (255 * std) for std in self.std]).view(1, CHANNELS, 1, 1)
        shift = torch.tensor([-mean / std for mean, std in zip(self.mean, self.std, strict=True)])
        return torch.addcmul(shift.view(1, CHANNELS, 1, 1), pixels.contiguous().float(), scale)
