from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import qat
from qat.equalize import Pair, equalize
from qat.functional.equalization import input_range, output_range
from qat.functional.folding import fold_factor

ROUNDING = 1e-4  # relative to the largest output: a few float32 products more
NEAR = 1e-2  # a layer in two pairs is as near to both as the last sweep left it


class Chain(nn.Module):
    """Convolution, BatchNorm, ReLU, depthwise, ReLU, convolution, ReLU6, convolution; then a linear part."""

    def __init__(self):
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.b, self.c, self.d = nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 4, 1), nn.Conv2d(4, 4, 1)
        self.e, self.f = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = F.relu(self.norm(self.a(x)))
        x = F.relu6(self.c(F.relu(self.b(x))))
        return self.f(F.dropout(F.relu(self.e(self.d(x).mean((2, 3)))), training=self.training))


@pytest.fixture
def chain(randomize) -> Chain:
    """With channels that differ by orders of magnitude."""
    model = randomize(Chain())
    with torch.no_grad():
        model.a.weight.mul_(10.0 ** torch.linspace(-2, 2, 6).view(-1, 1, 1, 1))
        model.e.weight.mul_(10.0 ** torch.linspace(-2, 1, 8).view(-1, 1))
    return model.eval()


def test_it_computes_the_same_and_leaves_the_model_alone(chain, images):
    before = {k: v.clone() for k, v in chain.state_dict().items()}
    equal, _ = equalize(chain, images)
    y, expected = equal(images), chain(images)
    assert (y - expected).abs().max() <= ROUNDING * expected.abs().max()
    assert all(torch.equal(v, before[k]) for k, v in chain.state_dict().items())
    assert not torch.equal(equal.b.weight, chain.b.weight)
    assert not equal.training


def test_pairs_are_joined_by_what_lets_factors_through(chain, images):
    _, pairs = equalize(chain, images)
    assert pairs == (Pair("a", "b", "norm"), Pair("b", "c", None), Pair("e", "f", None))  # a ReLU6 joins nothing


def test_both_sides_of_a_channel_have_the_same_range(chain, images):
    equal, _ = equalize(chain, images)
    torch.testing.assert_close(output_range(equal.e.weight), input_range(equal.f.weight, 1), rtol=NEAR, atol=0)
    torch.testing.assert_close(output_range(equal.b.weight), input_range(equal.c.weight, 1), rtol=NEAR, atol=0)
    size = output_range(equal.a.weight) * fold_factor(equal.norm.weight, equal.norm.running_var, equal.norm.eps).abs()
    alive = size > 0
    torch.testing.assert_close(size[alive], input_range(equal.b.weight, 6)[alive], rtol=NEAR, atol=0)


def test_one_scale_for_a_whole_weight_then_loses_less():
    """Large channels read with small weights: in one scale the small ones vanish."""
    model, x = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval(), torch.randn(64, 8)
    spread = 10.0 ** torch.linspace(-2, 2, 16)
    with torch.no_grad():
        model[0].weight.mul_(spread[:, None])
        model[0].bias.mul_(spread)
        model[2].weight.div_(spread)

    @torch.no_grad()
    def error(candidate):
        prepared = qat.prepare(candidate, x, "w8a8_per_tensor")
        qat.calibrate(prepared, [x])
        return float((prepared.eval()(x) - model(x)).square().mean())

    assert error(equalize(model, x)[0]) < error(model) / 10


class Shared(nn.Module):
    """Pairs that are none: read twice, called twice, an addition between."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 1) for _ in range(3))

    def forward(self, x):
        y = F.relu(self.a(x))
        y = F.relu(self.b(y) + y)
        return self.c(F.relu(self.c(y)))


def test_what_others_read_stays(images):
    model = Shared().eval()
    equal, pairs = equalize(model, images)
    assert pairs == ()
    assert torch.equal(equal(images), model(images))
