"""Units: every quantizer of the evaluation graph once, under the name that an override matches, with its size."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import qat


class Twice(nn.Module):
    """A layer that is called twice, a functional layer, and a BatchNorm that ends in its quantizer."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.table = nn.Parameter(torch.randn(5, 3))

    def forward(self, x):
        x = F.relu(self.conv(x))
        x = self.norm(self.conv(x))
        return F.linear(x.mean((2, 3)), self.table)


@pytest.mark.parametrize("model", [Twice(), None], ids=["twice", "small_net"])
def test_they_are_the_quantizers(model, small_net, images):
    prepared = qat.prepare(model or small_net, images)
    paths = [unit.quantizer for unit in prepared.units]
    assert sorted(paths) == sorted(qat.quantizers(prepared))


def test_sizes_are_those_of_one_example(images):
    sizes = {(u.name, u.tensor): u.size for u in qat.prepare(Twice().eval(), images).units}
    assert sizes == {
        ("conv", "weight"): 81,
        ("linear", "weight"): 15,
        ("x", "activation"): 192,
        ("conv", "activation"): 192,
        ("conv_2", "activation"): 192,
        ("mean", "activation"): 3,
        ("linear", "activation"): 5,
    }


def test_an_override_of_each_name_reaches_its_quantizer(images):
    base = qat.presets.load_preset("quant", "w8a8")
    for unit in qat.prepare(Twice().eval(), images).units:
        recipe = {**base, "override": {unit.name: {unit.tensor: {"bits": 3}}}}
        prepared = qat.prepare(Twice().eval(), images, recipe)
        narrow = [path for path, q in qat.quantizers(prepared).items() if q.spec.bits == 3]
        assert narrow == [unit.quantizer]
        assert [u.quantizer for u in prepared.units if not u.open] == narrow


def test_without_a_graph_there_are_none(small_net, images):
    assert qat.prepare(small_net, images, placement="modules").units == ()
