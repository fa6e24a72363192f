from __future__ import annotations

import operator

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import qat
from qat.export.bias import OPS, float_biases
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


class Ways(nn.Module):
    """One thing that is written in several ways, behind a linear layer of `[N, 8, 16]`."""

    def __init__(self, way, layer: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.second, self.way = nn.Linear(16, 16), nn.Linear(16, 16), way
        if layer is not None:
            self.reshape = layer  # a method's name

    def forward(self, x):
        return self.way(self, self.first(x), self.second(x))


WAYS = {
    "heads": lambda self, a, b: a.unflatten(-1, (4, 4)).transpose(1, 2) @ b.unflatten(-1, (4, 4)).permute(0, 2, 3, 1),
    "heads first": lambda self, a, b: torch.matmul(
        a.unflatten(-1, (4, 4)).permute(2, 0, 1, 3), b.unflatten(-1, (4, 4)).permute(2, 0, 3, 1)
    ),
    "product of keywords": lambda self, a, b: torch.matmul(a, other=b.transpose(1, 2)),
    "sequence first": lambda self, a, b: (a + b).transpose(0, 1).contiguous().view(-1, a.shape[0] * 4, 4),
    "heads into the batch": lambda self, a, b: (a + b).unflatten(-1, (2, 8)).transpose(1, 2).reshape(-1, 8, 8),
    "flattened by keywords": lambda self, a, b: torch.flatten(input=(a + b).transpose(1, 2), start_dim=1),
    "chunks": lambda self, a, b: torch.cat((a + b).chunk(2, 1), 2),
    "chunks the other way": lambda self, a, b: torch.cat((a + b).chunk(2, 1)[::-1], 1),
    "axis": lambda self, a, b: torch.cat(tensors=[a, 3 * b], axis=-1),
    "beside each other": lambda self, a, b: torch.hstack((a, 3 * b)),
    "padding of a size": lambda self, a, b: F.pad((a + b)[:, None], (0, 0, 0, 0, 0, a.size(2) - b.size(1))),
    "names": lambda self, a, b: self.reshape(a + b),
}


@pytest.mark.parametrize("way", WAYS)
def test_same_integers_however_it_is_written(way):
    x = torch.randn(8, 8, 16)
    prepared = qat.prepare(Ways(WAYS[way], nn.LayerNorm(16)).eval(), x[:2], target="executorch")
    qat.calibrate(prepared, [x])
    integer = float_biases(qat.convert(prepared))
    model = for_xnnpack(integer, (x[:2],))
    for batch in (1, 2, 7):
        # a product of matrices one by one is added up in another order than one of them all
        torch.testing.assert_close(model(x[:batch]), integer(x[:batch]), rtol=0, atol=1e-6)
    if way == "heads":
        assert torch.bmm in [n.target for n in model.graph.nodes]
    if way == "axis":
        joined = next(n for n in model.graph.nodes if n.target is torch.cat)
        assert len({value.args[1:] for value in joined.args[0]}) == 1  # one grid


def test_integers_are_read_by_the_grid_they_were_put_on():
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x):
            return self.last(F.pad(self.first(x), (0, 0, 0, 0, 2, 2)) * 0.25)

    x = torch.randn(8, 3, 5, 5)
    prepared = qat.prepare(Scaled().eval(), x[:2], target="executorch")
    qat.calibrate(prepared, [x])
    integer = float_biases(qat.convert(prepared))
    model = for_xnnpack(integer, (x[:2],))
    torch.testing.assert_close(model(x), integer(x), rtol=0, atol=0)
    put, read = OPS.quantize_per_tensor.default, OPS.dequantize_per_tensor.default
    reads = [n for n in model.graph.nodes if n.target is read and n.args[0].target is put]
    assert reads
    assert [n for n in reads if n.args[1:] != n.args[0].args[1:]] == []
