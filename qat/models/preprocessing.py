"""How images were prepared when published weights were evaluated: part of the weights, as their accuracy is."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Resize, cut out the centre, normalise.

    Attributes:
        image_size: Height and width of what the model sees.
        resize_size: Shorter side before the centre is cut out.
        interpolation: Of the resize: nearest, bilinear or bicubic.
        mean: Of each channel, in 0 .. 1.
        std: Of each channel, in 0 .. 1.
    """

    image_size: int
    resize_size: int
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def at(self, image_size: int) -> Preprocessing:
        """For another size of what the model sees, in the same proportion."""
        return replace(self, image_size=image_size, resize_size=round(image_size * self.resize_size / self.image_size))

    def options(self) -> dict[str, Any]:
        """By the names under which data sets take them."""
        return asdict(self) | {"mean": list(self.mean), "std": list(self.std)}
