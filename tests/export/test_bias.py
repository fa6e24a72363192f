from __future__ import annotations

import torch

from qat.export.bias import OPS, float_biases


def test_computes_the_same_bit_for_bit_without_integer_biases(integer, images):
    model = float_biases(integer)
    torch.testing.assert_close(model(images), integer(images), rtol=0, atol=0)
    stored = {name: value for name, value in model.state_dict().items() if "bias" in name}
    assert len(stored) == 4
    assert all(value.dtype is torch.float32 for value in stored.values())


def test_the_argument_is_untouched(integer, images):
    before = integer.code
    float_biases(integer)
    assert integer.code == before
    assert any(value.dtype is torch.int32 for value in integer.state_dict().values())


def test_rounding_at_the_products_scale_gives_the_integers_back(integer):
    float_model = float_biases(integer)
    checked = 0
    for node in integer.graph.nodes:
        if node.target is OPS.dequantize_per_channel.default and node.args[-1] is torch.int32:
            q, scale = (integer.get_buffer(n.target) for n in node.args[:2])
            back = (float_model.get_buffer(f"{node.args[0].target}_float") / scale).round()
            small = q.abs() < 2**23  # a dead channel's steps are tiny, and many
            torch.testing.assert_close(back[small].int(), q[small], rtol=0, atol=0)
            torch.testing.assert_close(back.double(), q.double(), rtol=2**-23, atol=0)
            checked += 1
    assert checked == 4
