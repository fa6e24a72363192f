"""From any node on, the rest of the graph gives what the whole model gives."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import qat
from qat.inputs import Inputs
from qat.walk import Walk


@pytest.fixture
def prepared(small_net, images):
    model = qat.prepare(small_net, images, "w4a4_lsq").eval()
    qat.calibrate(model, [images])
    return model


@torch.no_grad()
def test_every_quantizer_switched_off_alone(prepared, images):
    walk, found = Walk(prepared, Inputs.of(images)), qat.quantizers(prepared)
    with_all = prepared(images)
    for path in sorted(found, key=walk.place):
        walk.to(walk.place(path))
        found[path].enabled = False
        assert torch.equal(walk.rest(), prepared(images)), path
        found[path].enabled = True
        assert torch.equal(walk.rest(), with_all), path


@torch.no_grad()
def test_only_values_that_are_read_later_are_kept(prepared, images):
    walk = Walk(prepared, Inputs.of(images))
    walk.to(walk.place("fc"))
    assert len(walk._live) <= 3  # the input of fc, and scales
    walk.to(0)  # nowhere back
    assert torch.equal(walk.rest(), prepared(images))


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x, shift, *, gain=2.0):
        return self.second(torch.relu(self.first(x)) + shift) * gain


@torch.no_grad()
@pytest.mark.parametrize("by_keyword", [False, True])
def test_inputs_by_position_by_keyword_and_by_default(by_keyword):
    x, shift = torch.randn(4, 6), torch.randn(4, 8)
    model = qat.prepare(Scaled().eval(), (x,), example_kwargs={"shift": shift}).eval()
    inputs = Inputs((x,), {"shift": shift}) if by_keyword else Inputs((x, shift), {})
    qat.calibrate(model, [({"x": x, "shift": shift},)])
    walk = Walk(model, inputs)
    walk.to(walk.place("second"))
    assert torch.equal(walk.rest(), model(x, shift))
