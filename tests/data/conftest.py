"""Small image sets on disk, every image a colour of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def picture() -> Callable[..., Image.Image]:
    """Make a reproducible RGB image: `picture(seed, size=(width, height))`."""

    def make(seed: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
        rng = np.random.default_rng(seed)
        return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))

    return make


@pytest.fixture
def image_root(tmp_path: Path, picture: Callable[..., Image.Image]) -> Path:
    """ImageNet's layout: train with 5 images, val with 3 in each of the classes cat and dog."""
    for split, count in (("train", 5), ("val", 3)):
        for label, name in enumerate(("cat", "dog")):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                picture(100 * label + index).save(folder / f"{index}.png")
    return tmp_path
