from __future__ import annotations

import torch
from torch import nn

from qat.layers.adopt import adopt


class Tagged(nn.Linear):
    pass


def test_parameters_are_the_same_objects():
    layer = nn.Linear(3, 2)
    new = adopt(layer, Tagged)
    assert type(new) is Tagged
    assert new.weight is layer.weight
    assert new.bias is layer.bias
    assert (new.in_features, new.out_features) == (3, 2)


def test_a_new_child_is_not_seen_by_the_old_layer():
    layer = nn.Linear(3, 2)
    new = adopt(layer, Tagged)
    new.child = nn.ReLU()
    new.register_buffer("extra", torch.zeros(1))
    assert dict(layer.named_children()) == {}
    assert set(layer.state_dict()) == {"weight", "bias"}
    assert set(new.state_dict()) == {"weight", "bias", "extra"}


def test_hooks_and_mode_come_along():
    layer = nn.Linear(3, 2).eval()
    calls = []
    layer.register_forward_hook(lambda *_: calls.append(1))
    new = adopt(layer, Tagged)
    new(torch.zeros(1, 3))
    assert calls == [1]
    assert not new.training


def test_no_constructor_runs():
    class Refuses(nn.Linear):
        def __init__(self):
            raise AssertionError("adopt copies settings, it does not build")

    assert type(adopt(nn.Linear(3, 2), Refuses)) is Refuses
