"""Against the paper's equation 3, value by value."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qat.functional.affine import dequantize, quantize
from qat.functional.pact import learned_clip, longer_side

ROUNDING = 1e-5  # relative: a sum of 200 float32 values


@given(bits=st.integers(2, 8), alpha=st.floats(2.0**-7, 100.0, width=32), seed=st.integers(0, 2**16))
def test_behind_a_relu_it_is_the_paper(bits, alpha, seed):
    qmax = 2**bits - 1
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randn(200, generator=generator) * alpha).relu()
    x[0] = alpha
    x.requires_grad_()
    a, zero_point = torch.tensor(alpha, requires_grad=True), torch.tensor(0, dtype=torch.int32)
    y = learned_clip(x, a, zero_point, 0, qmax)
    grad = torch.rand(200, generator=generator) + 0.5
    y.backward(grad)
    with torch.no_grad():
        scale = a / qmax
        assert torch.equal(y, dequantize(quantize(x, scale, zero_point, 0, qmax), scale, zero_point))
        v = x / scale
        assert torch.equal(x.grad, grad * ((v > 0) & (v < qmax)))
        assert float(a.grad) == pytest.approx(float((grad * (v >= qmax)).sum()), rel=ROUNDING)


def test_a_negative_side_keeps_its_share_of_the_range():
    x = torch.tensor([-9.0, -0.4, 0.3, 9.0], requires_grad=True)
    alpha, zero_point = torch.tensor(2.0, requires_grad=True), torch.tensor(5, dtype=torch.int32)
    y = learned_clip(x, alpha, zero_point, 0, 15)  # 10 steps above zero, 5 below: [-1, 2]
    assert torch.equal(y, torch.tensor([-1.0, -0.4, 0.4, 2.0]))
    y.backward(torch.tensor([3.0, 5.0, 7.0, 11.0]))
    assert torch.equal(x.grad, torch.tensor([0.0, 5.0, 7.0, 0.0]))
    assert float(alpha.grad) == 3.0 * -0.5 + 11.0


@pytest.mark.parametrize(
    ("zero_point", "qmin", "qmax", "steps"), [(0, 0, 15, 15.0), (15, 0, 15, 15.0), (5, 0, 15, 10.0), (0, -7, 7, 7.0)]
)
def test_the_longer_side(zero_point, qmin, qmax, steps):
    assert longer_side(torch.tensor(zero_point), qmin, qmax) == steps


def test_one_threshold_per_channel():
    x, alpha = torch.tensor([[-4.0, 1.0], [1.0, 9.0]]), torch.tensor([2.0, 3.0], requires_grad=True)
    learned_clip(x, alpha, torch.zeros(2, dtype=torch.int32), -7, 7).sum().backward()
    assert alpha.grad.tolist() == [-1.0, 1.0]
