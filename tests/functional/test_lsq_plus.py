"""Against the paper's equations 2-4, value by value in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qat.functional.affine import dequantize, quantize
from qat.functional.lsq_plus import learned_step_and_offset, zero_point_of
from qat.spec import IntSpec

ROUNDING = 1e-4  # relative to the sum of sizes: a few hundred float32 products of up to 3 digits


@given(
    spec=st.builds(IntSpec, bits=st.integers(2, 8), signed=st.booleans(), scheme=st.just("affine")),
    scale=st.floats(2.0**-8, 4.0, width=32),
    lowest=st.floats(-300.0, 100.0, width=32),
    seed=st.integers(0, 2**16),
)
def test_forward_is_what_the_integers_mean_and_gradients_are_the_papers(spec, scale, lowest, seed):
    x = torch.randn(200, generator=torch.Generator().manual_seed(seed)) * scale * 2**spec.bits
    x[:20] = 0.0
    s, o = torch.tensor(scale, requires_grad=True), torch.tensor(lowest * scale, requires_grad=True)
    x.requires_grad_()
    y = learned_step_and_offset(x, s, o, spec.qmin, spec.qmax)
    grad = torch.linspace(-2.0, 3.0, 200)
    y.backward(grad)
    zero_point = zero_point_of(o, s, spec.qmin, spec.qmax)
    assert spec.qmin <= zero_point <= spec.qmax
    with torch.no_grad():
        q = quantize(x, s, zero_point, spec.qmin, spec.qmax)
        assert torch.equal(y, dequantize(q, s, zero_point))
        assert (y[:20] == 0).all()  # zero stays zero, whatever the offset
        v = (x / s).double()
        below, above = v < spec.qmin - zero_point, v > spec.qmax - zero_point
        per_value = torch.where(below, spec.qmin, torch.where(above, spec.qmax, v.round() - v))
        g = 1 / math.sqrt(200 * spec.qmax)
    assert torch.equal(x.grad, grad * ~(below | above))
    size = g * float((grad * per_value).abs().sum())
    assert float(s.grad) == pytest.approx(g * float((grad * per_value).sum()), abs=ROUNDING * (1 + size))
    assert float(o.grad) == pytest.approx(g * float((grad * (below | above)).sum()), abs=ROUNDING * (1 + size))


def test_one_pair_per_channel():
    x = torch.randn(2, 3, 4)
    s, o = torch.tensor([0.3, 0.02, 0.2], requires_grad=True), torch.tensor([0.0, -0.1, -9.0], requires_grad=True)
    learned_step_and_offset(x, s, o, 0, 15, axis=1).sum().backward()
    assert zero_point_of(o, s, 0, 15).tolist() == [0, 5, 15]
    assert s.grad.shape == o.grad.shape == (3,)
