"""Forwards that write into values: the graph says what the float model computes, or that it cannot."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import qat
from qat.errors import CaptureError


class Net(nn.Module):
    """Two convolutions around a forward's own idea of writing."""

    def __init__(self, between) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 5)
        self.between = between

    def forward(self, x):
        return self.head(F.relu(self.second(self.between(self.first(x)))).mean([2, 3]))


def shifted(y):
    """Temporal shift: half of the channels are those of others."""
    z = y.clone()
    z[:, :4] = y[:, 4:]
    z[:, 0] *= 2
    return z


def scaled_view(y):
    v = y[:, :3]
    v.mul_(4)
    return y


def old_view(y):
    v = y[:, :3]
    y.mul_(4)
    return torch.cat([v, y[:, 3:]], 1)


def own_view(y):
    v = y[:, :3]
    v.mul_(4)
    return torch.cat([v, v, v[:, :2]], 1)


@pytest.mark.parametrize("between", [shifted, own_view])
@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
@pytest.mark.runtime
def test_what_is_written_arrives(tmp_path, images, between, suffix):
    model = Net(between).eval()
    prepared = qat.prepare(model, images[:2])
    qat.fake_quant(prepared, enabled=False)
    assert torch.equal(prepared.eval()(images), model(images))
    qat.fake_quant(prepared, enabled=True)
    qat.calibrate(prepared, [images])
    target = "torch" if suffix == ".pt2" else "onnxruntime"
    artifact = qat.export(qat.convert(prepared.eval()), tmp_path / f"model{suffix}", target=target)
    report = qat.verify(prepared, artifact, [images])
    rounding = 1.5  # a product on a tie is one step off
    assert max(s.max_steps for s in report.stages if s.gated) < rounding


@pytest.mark.parametrize("between", [scaled_view, old_view])
def test_a_value_and_a_part_of_it(images, between):
    with pytest.raises(CaptureError, match=r"writes into .* shares its memory with .* placement=modules"):
        qat.prepare(Net(between), images[:2])


def twice_and_written(y):
    a, b = F.relu(y), F.relu(y)
    a.add_(1.0)
    return torch.cat([a[:, :4], b[:, 4:]], 1)


def test_equal_calls_of_which_one_is_written_into_stay_two(images):
    model = Net(twice_and_written).eval()
    prepared = qat.prepare(model, images[:2]).eval()
    qat.fake_quant(prepared, enabled=False)
    assert torch.equal(prepared(images), model(images))


class Biased(nn.Module):
    """Swin V2's keys: a bias of which a part is zeroed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(192, 6)

    def forward(self, x):
        bias = self.fc.bias.clone()
        bias[2:4].zero_()
        return F.linear(x.flatten(1), self.fc.weight, bias)


def test_what_parameters_alone_decide_is_computed_in_order(images):
    model = Biased().eval()
    prepared = qat.prepare(model, images[:2]).eval()
    qat.fake_quant(prepared, enabled=False)
    assert torch.equal(prepared(images), model(images))
