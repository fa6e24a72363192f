from __future__ import annotations

import torch
from torch import nn

from qat.layers import FakeQuantLinear


def test_switched_off_it_is_the_float_layer(weight_quantizer):
    layer, x = nn.Linear(5, 3), torch.randn(2, 7, 5)
    fake = FakeQuantLinear.from_float(layer, weight_quantizer(3))
    fake.weight_quantizer.enabled = False
    assert torch.equal(fake(x), layer(x))
    assert fake.weight is layer.weight


def test_switched_on_it_is_the_float_layer_with_the_stored_weight(weight_quantizer):
    layer, x = nn.Linear(5, 3, bias=False), torch.randn(7, 5)
    fake = FakeQuantLinear.from_float(layer, weight_quantizer(3, bits=4))
    y = fake(x)
    q = fake.weight_quantizer.integers(layer.weight)
    assert q.abs().max() == 7
    assert torch.equal(y, nn.functional.linear(x, q.float() * fake.weight_quantizer.scale[:, None]))
