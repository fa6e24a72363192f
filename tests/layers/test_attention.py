from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qat.layers.attention import OpenAttention, dot_product_attention
from qat.layers.transformer import open_attention

ROUNDING = 1e-6  # float32 sums of at most 16 products of order 1, in another order than torch's closed operator


@pytest.mark.parametrize("settings", [{}, {"batch_first": True}, {"bias": False}, {"kdim": 6, "vdim": 10}], ids=str)
@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
def test_equals_torchs_layer(settings, mode):
    layer = nn.MultiheadAttention(8, 2, **settings).train(mode)
    opened = OpenAttention.from_float(layer)
    batch_first = settings.get("batch_first", False)

    def sequence(length: int, width: int) -> torch.Tensor:
        return torch.randn((3, length, width) if batch_first else (length, 3, width))

    query, key, value = sequence(4, 8), sequence(5, layer.kdim), sequence(5, layer.vdim)
    mask = torch.zeros(4, 5).masked_fill(torch.rand(4, 5) < 0.2, -1e4)
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[1, 3:] = True
    for extra in ({}, {"attn_mask": mask}, {"attn_mask": mask < 0}, {"key_padding_mask": padding}):
        ours, theirs = opened(query, key, value, **extra), layer(query, key, value, **extra)
        torch.testing.assert_close(ours[0], theirs[0], rtol=ROUNDING, atol=ROUNDING)
        torch.testing.assert_close(ours[1], theirs[1], rtol=ROUNDING, atol=ROUNDING)
    assert opened(query, key, value, need_weights=False)[1] is None


def test_self_attention_and_its_gradients_equal_torchs():
    layer = nn.MultiheadAttention(8, 2, batch_first=True)
    opened = OpenAttention.from_float(copy.deepcopy(layer))
    x = torch.randn(3, 4, 8)
    for module in (layer, opened):
        module(x, x, x, need_weights=False)[0].square().sum().backward()
    for (name, ours), theirs in zip(opened.named_parameters(), layer.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-5, msg=name)  # sums of 12 squares more


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_product_attention_equals_torchs(causal, scale):
    q, k, v = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 4, 8), torch.randn(2, 3, 4, 5)
    ours = dot_product_attention(q, k, v, is_causal=causal, scale=scale)
    theirs = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)
    torch.testing.assert_close(ours, theirs, rtol=ROUNDING, atol=ROUNDING)


def test_parameters_are_the_same_objects_under_the_same_names():
    model = nn.Sequential(nn.MultiheadAttention(8, 2), nn.MultiheadAttention(8, 2, add_bias_kv=True))
    before = dict(model.named_parameters())
    open_attention(model)
    assert {n: id(p) for n, p in model.named_parameters()} == {n: id(p) for n, p in before.items()}
    assert type(model[0]) is OpenAttention
    assert type(model[1]) is nn.MultiheadAttention  # stays whole, and in float


def test_grouped_queries_are_refused():
    x = torch.randn(1, 2, 3, 4)
    with pytest.raises(NotImplementedError, match=r"enable_gqa=True.* keep the module in leaf_modules"):
        dot_product_attention(x, x, x, enable_gqa=True)
