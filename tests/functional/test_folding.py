from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from qat.functional.affine import quantize
from qat.functional.folding import BIAS_LIMIT, fit_bias, fold_bias, fold_factor, fold_integers, round_bias
from qat.functional.ranges import EPS, qparams
from qat.spec import IntSpec

DOUBLE = 1e-12  # relative: a few hundred float64 products, summed in another order
FLOAT_BIAS = 1e-6  # relative: float32 arithmetic, four operations


@st.composite
def channels(draw):
    """Weight `[C, 9]` away from ties, the grid's scale `[C]`, and what a BatchNorm holds per channel."""
    bits = draw(st.integers(2, 8))
    count = draw(st.integers(1, 5))
    seed = draw(st.integers(0, 2**16))
    generator = torch.Generator().manual_seed(seed)
    spec = IntSpec(bits=bits, narrow=True, granularity="per_channel")
    scale = torch.exp2(torch.empty(count).uniform_(-12, 4, generator=generator))
    steps = torch.randint(spec.qmin - 3, spec.qmax + 4, (count, 9), generator=generator)
    off = torch.empty(count, 9).uniform_(-0.49, 0.49, generator=generator)  # never half-way, where float bits decide
    gamma = torch.empty(count).uniform_(0.1, 2.0, generator=generator)
    gamma = gamma * (torch.randint(0, 2, (count,), generator=generator) * 2 - 1)
    var = torch.empty(count).uniform_(1e-4, 4.0, generator=generator)
    return spec, (steps + off) * scale[:, None], scale, gamma, var


@given(case=channels(), eps=st.sampled_from([1e-5, 1e-3]))
def test_folding_commutes_with_quantization(case, eps):
    """Q(f w; |f| s) = sign(f) Q(w; s): the integers that were trained are the integers that are deployed."""
    spec, weight, scale, gamma, var = case
    factor = fold_factor(gamma, var, eps)
    zero = torch.zeros_like(scale, dtype=torch.int32)
    q, new_scale = fold_integers(quantize(weight, scale, zero, spec.qmin, spec.qmax), scale, factor)
    folded = quantize(weight * factor[:, None], factor.abs() * scale, zero, spec.qmin, spec.qmax)
    assert torch.equal(q, folded)
    assert torch.equal(new_scale, factor.abs() * scale)
    assert q.dtype is torch.int8


@given(case=channels(), exponent=st.integers(-8, 8), sign=st.sampled_from([-1.0, 1.0]))
def test_folding_a_power_of_two_commutes_on_ties_too(case, exponent, sign):
    spec, weight, scale, _, _ = case
    weight = torch.round(weight / scale[:, None] * 2) / 2 * scale.log2().round().exp2()[:, None]  # half steps: all ties
    scale = scale.log2().round().exp2()
    factor = torch.full_like(scale, sign * 2.0**exponent)
    zero = torch.zeros_like(scale, dtype=torch.int32)
    q, new_scale = fold_integers(quantize(weight, scale, zero, spec.qmin, spec.qmax), scale, factor)
    assert torch.equal(q, quantize(weight * factor[:, None], new_scale, zero, spec.qmin, spec.qmax))


def test_a_dead_channel_has_no_weight_and_a_positive_scale():
    q = torch.tensor([[5, -7], [3, 1]], dtype=torch.int8)
    folded, scale = fold_integers(q, torch.tensor([0.1, 0.1]), torch.tensor([0.0, -2.0]))
    assert folded.tolist() == [[0, 0], [-3, -1]]
    assert torch.equal(scale, torch.tensor([EPS, 0.2]))


def test_the_narrow_grid_is_closed_under_folding():
    q = torch.arange(-127, 128, dtype=torch.int8)[None]
    folded, _ = fold_integers(q, torch.ones(1), torch.tensor([-1.0]))
    assert torch.equal(folded, q.flip(1))


@pytest.mark.parametrize("eps", [1e-5, 1e-3])
def test_fold_factor_is_batchnorms(eps):
    norm = nn.BatchNorm2d(6, eps=eps).double().eval()
    nn.init.normal_(norm.weight)
    nn.init.uniform_(norm.running_var, 0.01, 2.0)
    x = torch.randn(2, 6, 3, 3, dtype=torch.double)
    factor = fold_factor(norm.weight, norm.running_var, eps).detach()
    torch.testing.assert_close(norm(x).detach(), x * factor.view(-1, 1, 1), atol=DOUBLE, rtol=DOUBLE)


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("eps", [1e-5, 1e-3])
def test_folded_weight_and_bias_are_conv_and_batchnorm(with_bias, eps):
    conv = nn.Conv2d(4, 6, 3, groups=2, bias=with_bias).double()
    norm = nn.BatchNorm2d(6, eps=eps).double().eval()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, -0.5, 0.0, 2.0, -1e-3, 1e3]))
        for tensor in (norm.bias, norm.running_mean):
            tensor.normal_()
        norm.running_var.uniform_(0.01, 2.0)
        x = torch.randn(3, 4, 7, 7, dtype=torch.double)
        factor = fold_factor(norm.weight, norm.running_var, eps)
        bias = fold_bias(conv.bias, norm.running_mean, norm.bias, factor)
        folded = F.conv2d(x, conv.weight * factor.view(-1, 1, 1, 1), bias, groups=2)
        expected = norm(conv(x))
    torch.testing.assert_close(folded, expected, atol=DOUBLE * float(expected.abs().max()), rtol=DOUBLE)
    assert bias[2] == norm.bias[2]  # dead: nothing but beta is left


@given(seed=st.integers(0, 2**16), input_scale=st.floats(2.0**-14, 8.0, width=32), overflow=st.booleans())
def test_a_bias_fits_int32(seed, input_scale, overflow):
    generator = torch.Generator().manual_seed(seed)
    spec = IntSpec(narrow=True, granularity="per_channel")
    weight = torch.randn(4, 18, generator=generator)
    if overflow:
        weight[1] *= 1e-9  # a channel of tiny weights ...
    bias = torch.randn(4, generator=generator) * 3
    bias[1] = 50.0  # ... and a large bias
    scale, zero = qparams(weight.amin(1), weight.amax(1), spec)
    q = quantize(weight, scale, zero, spec.qmin, spec.qmax)
    fitted, new_scale, steps = fit_bias(q, scale, bias, input_scale)

    assert steps.dtype is torch.int32
    assert (steps.abs().double() <= BIAS_LIMIT).all()
    value = steps.double() * new_scale.double() * input_scale
    half_step = new_scale.double() * input_scale / 2
    assert ((value - bias.double()).abs() <= half_step + FLOAT_BIAS * bias.double().abs()).all()
    normal = torch.tensor([0, 2, 3])
    assert torch.equal(fitted[normal], q[normal])
    assert torch.equal(new_scale[normal], scale[normal])
    # the weight moved by no more than half of its new, coarser step
    moved = fitted.double() * new_scale[:, None].double() - q.double() * scale[:, None].double()
    assert (moved.abs() <= new_scale[:, None].double() * (0.5 + FLOAT_BIAS)).all()
    assert (new_scale >= scale).all()


def test_a_bias_that_fits_touches_nothing():
    q, scale = torch.tensor([[100, -3]], dtype=torch.int8), torch.tensor([0.01])
    fitted, same, steps = fit_bias(q, scale, torch.tensor([0.5]), 0.02)
    assert fitted is q
    assert same is scale
    assert steps.tolist() == [2500]


def test_one_scale_for_a_whole_weight_gets_a_bias_too():
    q, scale = torch.tensor([[100, -3], [5, 5]], dtype=torch.int8), torch.tensor(0.01)
    fitted, same, steps = fit_bias(q, scale, torch.tensor([0.5, -0.1]), 0.02)
    assert fitted is q
    assert same is scale
    assert steps.tolist() == [2500, -500]


@given(seed=st.integers(0, 2**16), input_scale=st.floats(2.0**-10, 1.0, width=32))
def test_a_rounded_bias_is_what_the_stored_one_says(seed, input_scale):
    """The fake-quant model sees the int32 that `fit_bias` stores, and trains as if it did not."""
    generator = torch.Generator().manual_seed(seed)
    bias = torch.randn(6, generator=generator).requires_grad_()
    scale = torch.rand(6, generator=generator) * 0.02 + 1e-3
    rounded = round_bias(bias, scale * input_scale)
    _, _, steps = fit_bias(torch.ones(6, 2, dtype=torch.int8), scale, bias.detach(), input_scale)
    step = scale.double() * input_scale
    assert ((rounded.detach().double() - steps * step).abs() <= FLOAT_BIAS * bias.detach().abs().clamp(min=1e-2)).all()
    rounded.sum().backward()
    assert torch.equal(bias.grad, torch.ones(6))


def test_a_bias_of_a_dead_channel_stays():
    bias = torch.tensor([0.7, -3.0])
    torch.testing.assert_close(round_bias(bias, torch.zeros(2)), bias, atol=0, rtol=FLOAT_BIAS)


def test_the_bias_gives_its_own_gradient_and_none_to_the_scale():
    bias, step = torch.randn(3, requires_grad=True), torch.rand(3, requires_grad=True)
    round_bias(bias, step).sum().backward()
    assert torch.equal(bias.grad, torch.ones(3))
    assert step.grad is None
