from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qat.functional.adaround import beta_at, penalty, soft_step, soft_weight, undecided

ROUNDING = 1e-5  # relative: a logarithm and a sigmoid in float32


@given(seed=st.integers(0, 1000), scale=st.floats(2.0**-6, 2.0, width=32))
def test_undecided_leaves_the_weight_as_it_is(seed, scale):
    w = torch.randn(50, generator=torch.Generator().manual_seed(seed)) * scale
    s = torch.tensor(scale)
    torch.testing.assert_close(soft_weight(w, undecided(w, s), s, -127, 127), w, rtol=ROUNDING, atol=ROUNDING * scale)


def test_decided_is_floor_or_ceiling():
    w, s = torch.tensor([0.26, 0.26, -0.26, 9.0]), torch.tensor(0.1)
    v = torch.tensor([-9.0, 9.0, 9.0, 9.0])
    assert soft_step(v).tolist() == [0.0, 1.0, 1.0, 1.0]
    assert torch.equal(soft_weight(w, v, s, -7, 7), torch.tensor([2.0, 3.0, -2.0, 7.0]) * s)
    assert penalty(v, 2.0) == 0.0


def test_the_middle_is_penalised_most():
    assert float(penalty(torch.zeros(3), 20.0)) == 3.0
    v = torch.linspace(-2.0, 2.0, 9)
    h = (torch.sigmoid(v) * 1.2 - 0.1).clamp(0, 1)
    expected = (1 - (2 * h - 1).abs() ** 3.0).sum()
    assert float(penalty(v, 3.0)) == pytest.approx(float(expected))


def test_gradients_are_the_closed_form():
    v = torch.tensor([-1.0, 0.3, 2.0], requires_grad=True)
    w, s = torch.tensor([0.11, 0.27, -0.33]), torch.tensor(0.2)
    soft_weight(w, v, s, -7, 7).sum().backward()
    sigmoid = torch.sigmoid(v.detach())
    torch.testing.assert_close(v.grad, s * 1.2 * sigmoid * (1 - sigmoid))


@pytest.mark.parametrize(("progress", "beta"), [(0.0, None), (0.19, None), (0.2, 20.0), (0.6, 11.0), (1.0, 2.0)])
def test_beta_falls_after_the_warmup(progress, beta):
    found = beta_at(progress)
    assert found == (beta if beta is None else pytest.approx(beta))
