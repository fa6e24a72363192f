"""Against the paper's equations 3 and 5, value by value in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qat.functional.affine import dequantize, quantize
from qat.functional.lsq import gradient_scale, learned_step
from qat.spec import IntSpec

ROUNDING = 1e-4  # relative to the sum of sizes: a few hundred float32 products of up to 3 digits


@st.composite
def cases(draw):
    spec = draw(st.builds(IntSpec, bits=st.integers(2, 8), signed=st.booleans()))
    scale = torch.tensor(draw(st.floats(2.0**-8, 4.0, width=32)))
    zero_point = torch.tensor(draw(st.integers(spec.qmin, spec.qmax)), dtype=torch.int32)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    return spec, scale, zero_point, torch.randn(200, generator=generator) * scale * 2**spec.bits


def backward(x, scale, *grid, axis=0):
    x, scale = x.clone().requires_grad_(), scale.clone().requires_grad_()
    y = learned_step(x, scale, *grid, axis=axis)
    grad = torch.linspace(-2.0, 3.0, y.numel()).view_as(y)
    y.backward(grad)
    return y.detach(), grad.double(), x.grad, scale.grad


@given(case=cases())
def test_forward_is_what_the_integers_mean_and_gradients_are_the_papers(case):
    spec, scale, zero_point, x = case
    y, grad, dx, ds = backward(x, scale, zero_point, spec.qmin, spec.qmax)
    q = quantize(x, scale, zero_point, spec.qmin, spec.qmax)
    assert torch.equal(y, dequantize(q, scale, zero_point))

    v = (x / scale).double()  # the same division as in forward, so that both agree where a value rounds
    a, b = spec.qmin - int(zero_point), spec.qmax - int(zero_point)
    inside = (a < v) & (v < b)
    per_value = torch.where(inside, v.round() - v, torch.where(v <= a, float(a), float(b)))
    g = 1 / math.sqrt(x.numel() * spec.qmax)
    assert torch.equal(dx, (grad * inside).float())
    size = float((grad * v.clamp(a, b)).abs().sum()) * g
    assert float(ds) == pytest.approx(float((grad * per_value).sum()) * g, abs=ROUNDING * (1 + size))


def test_per_channel_is_per_tensor_on_every_slice():
    x, scale = torch.randn(3, 4, 5), torch.tensor([0.3, 0.02, 1.5])
    y, _, dx, ds = backward(x, scale, None, -7, 7)
    for c in range(3):
        part, s = x[c].clone().requires_grad_(), scale[c].clone().requires_grad_()
        out = learned_step(part, s, None, -7, 7)
        out.backward(torch.linspace(-2.0, 3.0, x.numel()).view_as(x)[c])
        assert torch.equal(out, y[c])
        assert torch.equal(part.grad, dx[c])
        assert float(s.grad) == pytest.approx(float(ds[c]), rel=1e-5)  # order of a sum


def test_a_channel_axis_other_than_the_first():
    x, scale, zero_point = torch.randn(2, 3, 4), torch.tensor([0.3, 0.02, 1.5]), torch.tensor([0, 7, 15])
    y, _, dx, ds = backward(x, scale, zero_point, 0, 15, axis=1)
    assert torch.equal(y, dequantize(quantize(x, scale, zero_point, 0, 15, axis=1), scale, zero_point, axis=1))
    assert dx.shape == x.shape
    assert ds.shape == (3,)


def test_the_gradient_scale_is_that_of_section_2_2():
    assert gradient_scale(400, 4) == 1 / 40


def test_descent_finds_the_step_size_of_least_squares():
    """Trained on its own error, the step size ends where a search over all step sizes ends."""
    x = torch.randn(4000)
    scale = torch.tensor(1.0, requires_grad=True)
    for _ in range(150):
        error = (learned_step(x, scale, None, -7, 7) - x).square().mean()
        (grad,) = torch.autograd.grad(error, scale)
        with torch.no_grad():
            scale -= 0.1 * grad / gradient_scale(x.numel(), 7)  # the true gradient
    scale.requires_grad_(False)
    candidates = torch.linspace(0.1, 1.0, 181)
    errors = [float((learned_step(x, s, None, -7, 7) - x).square().mean()) for s in candidates]
    found = float((learned_step(x, scale, None, -7, 7) - x).square().mean())
    near = 1.02  # the straight-through gradient is zero near the optimum, not at it
    assert found <= near * min(errors)
