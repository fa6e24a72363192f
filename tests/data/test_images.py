from __future__ import annotations

import pytest
import torch

from qat.data.augmentation import Augmentation
from qat.data.images import ImageBatches, InMemory, check_labels, decoding
from qat.data.normalization import Normalization
from qat.data.sampler import Draw
from qat.errors import DataError

UNIT = Normalization(mean=(0, 0, 0), std=(1 / 255,) * 3)  # pixels as they are


def batches(seed: int | None = None) -> ImageBatches:
    pixels = torch.randint(256, (12, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    augment = None if seed is None else Augmentation.CROP_FLIP
    return ImageBatches(InMemory(pixels), torch.arange(12), normalization=UNIT, augment=augment, seed=seed)


def test_a_batch_is_its_rows():
    images, labels = batches().__getitems__([5, 2])
    assert images.shape == (2, 3, 16, 16)
    assert images.dtype == torch.float32
    assert labels.tolist() == [5, 2]
    assert labels.dtype == torch.int64
    one, label = batches()[5]
    assert torch.equal(one, images[0])
    assert label == 5


def test_draws_are_a_function_of_seed_and_epoch():
    def draw(seed: int, epoch: int) -> torch.Tensor:
        return batches(seed).__getitems__([Draw(row, epoch) for row in range(12)])[0]

    assert torch.equal(draw(0, 0), draw(0, 0))
    assert torch.equal(draw(0, 0), batches(0).__getitems__(list(range(12)))[0])  # a plain row number is epoch 0
    assert not torch.equal(draw(0, 0), draw(0, 1))
    assert not torch.equal(draw(0, 0), draw(1, 0))
    assert not torch.equal(draw(0, 1), draw(1, 0))


def test_draws_leave_the_global_generator_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    batches(0).__getitems__([Draw(0, 0), Draw(1, 0)])
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("raised", [OSError("truncated"), ValueError("bad"), SyntaxError("broken PNG")])
def test_whatever_a_decoder_raises_names_the_image(raised: Exception):
    with pytest.raises(DataError, match=rf"cat/3\.png does not decode as an image .*{raised}"), decoding("cat/3.png"):
        raise raised


def test_an_empty_split_is_refused():
    with pytest.raises(DataError, match="the validation split is empty: need at least one image"):
        check_labels(torch.tensor([], dtype=torch.int64), 3, "the validation split")


def test_a_label_that_is_no_class_is_refused():
    with pytest.raises(DataError, match="has label 3 in row 1, need 0 <= label < 3 classes"):
        check_labels(torch.tensor([0, 3]), 3, "the training split")
    with pytest.raises(DataError, match="-1 marks a split published without labels"):
        check_labels(torch.tensor([-1, -1]), 3, "the validation split")
