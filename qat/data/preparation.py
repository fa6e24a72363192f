"""How a picture becomes an input, in words that a program without this package can follow (`examples/deploy`)."""

from __future__ import annotations

from typing import Any

from qat.data.base import ImageData
from qat.data.evaluation import Interpolation


def preparation(data: ImageData) -> dict[str, Any] | None:
    """What was done to a validation image, and what the classes are called; None for data that do not say.

    Keys: `size` [H, W]; `resize`, the shorter side before the centre is cut out, or None where pictures have that size
    and others are brought to it as a whole; `interpolation`; `mean` and `std` of each channel, in 0 .. 1; `classes`.

    Args:
        data: set up.
    """
    normalization = getattr(data, "normalization", None)
    if normalization is None:
        return None
    return {
        "size": list(data.input_shape[1:]),
        "resize": getattr(data, "resize_size", None),
        "interpolation": str(getattr(data, "interpolation", Interpolation.BILINEAR)),
        "mean": list(normalization.mean),
        "std": list(normalization.std),
        "classes": list(data.class_names),
    }
