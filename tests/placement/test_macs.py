from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import DeformConv2d

import qat
from qat.placement.macs import layer_macs

N = 2


@pytest.mark.parametrize(
    ("layer", "shapes", "macs"),
    [
        (nn.Conv2d(4, 8, 3, padding=1, groups=4), [(4, 5, 5)], 8 * 25 * 9),
        (nn.ConvTranspose2d(3, 8, 2, stride=2), [(3, 5, 5)], 3 * 25 * 8 * 4),
        (nn.Linear(10, 4), [(7, 10)], 280),
        (nn.Linear(10, 1), [(10,)], 10),
        (nn.LSTM(6, 5, batch_first=True), [(7, 6)], 7 * 4 * 5 * (6 + 5)),
        (nn.GRU(6, 5, 2, batch_first=True), [(7, 6)], 7 * 3 * 5 * (6 + 5 + 5 + 5)),
        (DeformConv2d(3, 8, 3, padding=1), [(3, 5, 5), (18, 5, 5)], 8 * 25 * 27),
        (nn.MultiheadAttention(8, 2, add_bias_kv=True, batch_first=True), [(5, 8), (4, 8), (4, 8)],
         5 * 64 + 2 * 4 * 64 + 2 * 5 * 4 * 8 + 5 * 64),
        (nn.BatchNorm2d(3), [(3, 4, 4)], 0),
        (nn.LayerNorm((3, 4)), [(3, 4)], 0),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else None,
)  # fmt: skip
def test_products_of_one_example(layer, shapes, macs):
    inputs = tuple(torch.randn(N, *shape) for shape in shapes)
    with torch.no_grad():
        assert layer_macs(layer.eval(), inputs, layer(*inputs)) == macs


class Matrix(nn.Module):
    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(6, 4))

    def forward(self, x):
        return x @ self.matrix


class Around(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


def test_a_matrix_of_a_class_that_is_not_known():
    x = torch.randn(N, 5, 6)
    assert layer_macs(Matrix(), (x,), Matrix()(x)) == 5 * 24


@pytest.mark.parametrize("placement", ["graph", "modules"])
@pytest.mark.parametrize(
    ("whole", "macs"),
    [(lambda: Around(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))), 72), (lambda: Around(Matrix()), 24)],
    ids=["layers", "matrix"],
)
def test_what_stays_whole_counts_as_float(placement, whole, macs):
    model = nn.Sequential(nn.Linear(6, 6), whole()).eval()
    how = {"leaf_modules": (Around,)} if placement == "graph" else {"placement": "modules", "exclude": ("1.*",)}
    if placement == "modules" and macs == 24:
        how.pop("exclude")  # no layer there
    plan = qat.prepare(model, torch.randn(N, 6), **how).plan
    assert sum(op.macs for op in plan.ops) == 36 + macs
    assert plan.int8_mac_share == pytest.approx(36 / (36 + macs))


def test_attention_that_is_not_opened_counts_as_float():
    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.fc = nn.MultiheadAttention(8, 2, add_zero_attn=True, batch_first=True), nn.Linear(8, 4)

        def forward(self, x):
            return self.fc(self.attention(x, x, x, need_weights=False)[0])

    plan = qat.prepare(Attends().eval(), torch.randn(N, 5, 8)).plan
    assert plan.int8_mac_share == pytest.approx(160 / (160 + 4 * 5 * 64 + 2 * 25 * 8))


class Products(nn.Module):
    """What no layer computes: attention by hand, a functional layer, a sum with a product."""

    def __init__(self):
        super().__init__()
        self.qkv, self.weight = nn.Linear(6, 18), nn.Parameter(torch.randn(4, 6))

    def forward(self, x):  # [N, 5, 6]
        q, k, v = self.qkv(x).chunk(3, -1)
        scores = torch.baddbmm(x.mean((1, 2))[:, None, None].expand(-1, 5, 5), q, k.transpose(1, 2))
        return F.linear(torch.matmul(scores.softmax(-1), v), self.weight)


@pytest.mark.parametrize("inside", [False, True], ids=["its own forward", "a module's"])
def test_products_of_a_forward_count_as_float_without_a_graph(inside):
    model = nn.Sequential(Products(), nn.Linear(4, 2)) if inside else Products()
    plan = qat.prepare(model.eval(), torch.randn(N, 5, 6), placement="modules").plan
    by_hand, layers = 2 * 5 * 5 * 6 + 5 * 6 * 4, 5 * 6 * 18 + inside * 5 * 4 * 2
    found = {op.name: op.macs for op in plan.ops if op.macs and not op.integer}
    assert found == {"0" if inside else "forward": by_hand}
    assert plan.int8_mac_share == pytest.approx(layers / (layers + by_hand))


def test_a_sum_with_a_product_counts_in_a_graph():
    plan = qat.prepare(Products().eval(), torch.randn(N, 5, 6)).plan
    assert sum(op.macs for op in plan.ops) == 5 * 6 * 18 + 2 * 5 * 5 * 6 + 5 * 6 * 4
    assert next(op.macs for op in plan.ops if op.kind == "baddbmm") == 5 * 5 * 6
