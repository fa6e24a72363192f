from __future__ import annotations

import torch
from torch.nn import functional as F

from qat.data.augmentation import Augmentation, random_crop, random_flip

N, SIZE, PADDING = 64, 16, 2


def pixels() -> torch.Tensor:
    return torch.randint(1, 256, (N, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_a_crop_is_a_window_of_the_padded_image():
    images = pixels()
    torch.manual_seed(0)
    cropped = random_crop(images, padding=PADDING)
    torch.manual_seed(0)
    top, left = torch.randint(2 * PADDING + 1, (2, N, 1)).squeeze(-1)
    for image, window, y, x in zip(images, cropped, top.tolist(), left.tolist(), strict=True):
        padded = F.pad(image, (PADDING,) * 4)
        assert torch.equal(window, padded[:, y : y + SIZE, x : x + SIZE])
    assert set(top.tolist()) == set(left.tolist()) == set(range(2 * PADDING + 1))  # both ends included


def test_a_flip_mirrors_some_images_and_leaves_the_rest():
    images = pixels()
    torch.manual_seed(0)
    flipped = random_flip(images)
    mirrored = [torch.equal(after, before.flip(-1)) for after, before in zip(flipped, images, strict=True)]
    same = [torch.equal(after, before) for after, before in zip(flipped, images, strict=True)]
    assert all(a != b for a, b in zip(mirrored, same, strict=True))
    assert N / 4 < sum(mirrored) < 3 * N / 4


def test_none_changes_nothing():
    images = pixels()
    assert Augmentation.NONE(images) is images


def test_crop_never_mirrors():
    images = torch.arange(1, 33, dtype=torch.uint8).expand(N, 3, 32, 32)  # rises to the right
    steps = Augmentation.CROP(images).int().diff(dim=-1)
    falls = (steps < 0).any(dim=(1, 2))  # [N, W - 1]: only where the black padding begins
    assert (falls.sum(dim=-1) <= 1).all()


def test_an_eighth_of_the_size_is_padded():
    ones = torch.ones(256, 3, 32, 32, dtype=torch.uint8)
    missing = 32 - Augmentation.CROP_FLIP(ones)[:, 0].amax(dim=1).sum(dim=-1)
    assert missing.max() == 4
