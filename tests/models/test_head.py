from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from qat.errors import ConfigError
from qat.models import head_of, resnet20


class Reads(nn.Module):
    """Looks at values in its constructor, which the meta device has not."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.widths = [int(width) for width in torch.linspace(4, 8, 2)]
        self.body = nn.Linear(4, self.widths[1])
        self.head = nn.Linear(self.widths[1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def test_head_is_what_the_classes_change() -> None:
    assert head_of(lambda n: resnet20(num_classes=n), 64) == ("fc.weight", "fc.bias")  # its layers have 64 channels


def test_a_constructor_that_reads_values_draws_nothing() -> None:
    before = torch.get_rng_state()
    assert head_of(Reads, 3) == ("head.weight", "head.bias")
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_head() -> None:
    with pytest.raises(ConfigError, match=r"Linear has no head .*none of its tensors depends on num_classes"):
        head_of(lambda _: nn.Linear(3, 4), 5)
