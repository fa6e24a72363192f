from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from qat.layers import FakeQuantConv1d, FakeQuantConv2d, FakeQuantConv3d

CASES = {
    "conv1d": (FakeQuantConv1d, nn.Conv1d(4, 6, 3, padding=1), (2, 4, 9)),
    "conv2d": (FakeQuantConv2d, nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False), (2, 4, 9, 9)),
    "depthwise": (FakeQuantConv2d, nn.Conv2d(4, 8, 3, groups=4, dilation=2), (2, 4, 9, 9)),
    "reflect": (FakeQuantConv2d, nn.Conv2d(4, 6, 3, padding=2, padding_mode="reflect"), (2, 4, 9, 9)),
    "same": (FakeQuantConv2d, nn.Conv2d(4, 6, (3, 5), padding="same"), (2, 4, 9, 9)),
    "conv3d": (FakeQuantConv3d, nn.Conv3d(4, 6, 2), (2, 4, 5, 5, 5)),
}


@pytest.fixture(params=CASES, ids=list(CASES))
def case(request, weight_quantizer):
    cls, layer, shape = copy.deepcopy(CASES[request.param])
    return layer, cls.from_float(layer, weight_quantizer(layer.out_channels)), torch.randn(shape)


def test_switched_off_it_is_the_float_layer(case):
    layer, fake, x = case
    fake.weight_quantizer.enabled = False
    for mode in (False, True):
        assert torch.equal(fake.train(mode)(x), layer.train(mode)(x))


def test_switched_on_it_is_the_float_layer_with_the_stored_weight(case):
    layer, fake, x = case
    y = fake(x)
    q, scale = fake.weight_quantizer.integers(layer.weight), fake.weight_quantizer.scale
    layer.weight.data = q.float() * scale.view(-1, *[1] * (q.ndim - 1))
    assert torch.equal(y, layer(x))


def test_parameters_and_names_are_the_float_layers(case):
    layer, fake, _ = case
    assert fake.weight is layer.weight
    assert fake.bias is layer.bias
    assert isinstance(fake, type(layer))
    assert set(layer.state_dict()) <= set(fake.state_dict())
    assert all(key.startswith("weight_quantizer.") for key in set(fake.state_dict()) - set(layer.state_dict()))
    assert not any(key.startswith("weight_quantizer") for key in layer.state_dict())


def test_gradients_are_those_of_the_stored_weight(case):
    layer, fake, x = case
    x = x.requires_grad_()
    fake(x).square().sum().backward()
    reference = copy.deepcopy(layer)
    quantizer = fake.weight_quantizer
    stored = quantizer.integers(layer.weight).float() * quantizer.scale.view(-1, *[1] * (layer.weight.ndim - 1))
    reference.weight = nn.Parameter(stored)
    other = x.detach().clone().requires_grad_()
    reference(other).square().sum().backward()
    assert torch.equal(layer.weight.grad, reference.weight.grad)  # straight through: nothing is clipped
    assert torch.equal(x.grad, other.grad)
