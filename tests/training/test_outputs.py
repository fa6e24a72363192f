from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torchvision.models.googlenet import GoogLeNetOutputs
from torchvision.models.inception import InceptionOutputs

from qat.errors import ConfigError
from qat.training.outputs import Outputs

A, B, C = (torch.full((2, 5), float(i)) for i in range(3))
MAP = torch.zeros(2, 5, 4, 4)


@pytest.mark.parametrize(
    ("returned", "auxiliary", "weight"),
    [
        (A, (), 0.3),
        (GoogLeNetOutputs(A, B, C), (B, C), 0.3),
        (GoogLeNetOutputs(A, None, None), (), 0.3),
        (InceptionOutputs(A, B), (B,), 0.4),
        ((A, B), (B,), 0.3),
        ([A], (), 0.3),
        ({"logits": A, "aux_logits": B, "features": MAP}, (B,), 0.3),
        ({"features": MAP, "logits": A}, (), 0.3),
        (OrderedDict(out=A, aux=B), (B,), 0.3),
    ],
)
def test_logits_are_found_with_their_auxiliaries(returned: Any, auxiliary: tuple[Any, ...], weight: float) -> None:
    outputs = Outputs.of(returned, "Net")
    assert outputs.logits is A
    assert [id(t) for t in outputs.auxiliary] == [id(t) for t in auxiliary]
    assert outputs.aux_weight == weight


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (MAP, r"float32 \[2, 5, 4, 4\]"),
        (torch.zeros(2, 5, dtype=torch.int64), r"int64 \[2, 5\]"),
        ((A, MAP), r"a tuple of \(float32 \[2, 5\], float32 \[2, 5, 4, 4\]\)"),
        ({"boxes": [A]}, r"a dict of \{'boxes': a list of \(float32 \[2, 5\]\)\}"),
        ((), r"a tuple of \(\)"),
        (None, "a NoneType"),
    ],
)
def test_what_the_loss_cannot_use(returned: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=rf"^Net returns {words}, which the loss cannot use; need logits \[N"):
        Outputs.of(returned, "Net")
