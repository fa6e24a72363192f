from __future__ import annotations

import operator

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import qat
from qat.export.bias import float_biases
from qat.export.xnnpack import for_xnnpack


class Shortcut(nn.Module):
    """ResNet-20's: every second pixel, and zero channels around."""

    def __init__(self, step: int, around: tuple[int, int]) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.main = nn.Conv2d(4, 4 + sum(around), 3, stride=step, padding=1)
        self.step, self.around = step, around

    def forward(self, x):
        x = F.relu(self.first(x))
        short = F.pad(x[:, :, :: self.step, :: self.step], (0, 0, 0, 0, *self.around))
        return torch.flatten(F.relu(self.main(x) + short), 1)


@pytest.mark.parametrize(("step", "around"), [(2, (2, 2)), (3, (1, 0)), (1, (0, 3))])
def test_shortcut_becomes_exact_convolutions(images, step, around):
    prepared = qat.prepare(Shortcut(step, around).eval(), images[:2], target="executorch")
    qat.calibrate(prepared, [images])
    integer = qat.convert(prepared)
    model = for_xnnpack(float_biases(integer), (images[:2],))
    for batch in (1, 2, 7):
        torch.testing.assert_close(model(images[:batch]), integer(images[:batch]), rtol=0, atol=0)
    targets = [n.target for n in model.graph.nodes]
    assert operator.getitem not in targets
    assert F.pad not in targets
    assert torch.flatten not in targets  # a batch size read from the input would stay outside


def test_padding_that_is_not_of_channels_stays(images):
    class Pad(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.conv(F.pad(x, (1, 1, 1, 1)))

    prepared = qat.prepare(Pad().eval(), images[:2], target="executorch")
    qat.calibrate(prepared, [images])
    integer = qat.convert(prepared)
    model = for_xnnpack(integer, (images[:2],))
    assert [n.target for n in model.graph.nodes].count(F.pad) == 1
    torch.testing.assert_close(model(images), integer(images), rtol=0, atol=0)
