from __future__ import annotations

import math
from unittest import mock

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from qat.functional.ste import (
    IDENTITY,
    RELU,
    RELU6,
    Clamp,
    fake_quantize,
    fake_quantize_channels,
    grid,
    pass_inside,
    snap_,
)
from qat.spec import IntSpec

# Torch multiplies by 1 / s and adds z before it rounds, we divide: the same integers, except where x / s is so near a
# half that the last float bit decides. Inputs keep this distance (in steps) from ties, far above float32's 300 * 2^-23.
FROM_TIE = 0.02
ACTIVATIONS = {
    IDENTITY: lambda x: x,
    RELU: F.relu,
    RELU6: F.relu6,
    Clamp(0.0, 1.0): lambda x: F.hardtanh(x, 0.0, 1.0),
}


@st.composite
def cases(draw):
    """A grid anywhere, and inputs on, between and beyond its steps, none of them near a tie."""
    spec = draw(st.builds(IntSpec, bits=st.integers(2, 8), signed=st.booleans()))
    scale = draw(st.floats(2.0**-10, 2.0**3, width=32))
    zero_point = draw(st.integers(spec.qmin, spec.qmax))
    for end in (1.0, 6.0):  # the clamp's own end is rounded as well
        assume(abs(math.modf(end / scale)[0] - 0.5) > FROM_TIE)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    steps = torch.randint(-300, 300, (200,), generator=generator)
    off = torch.empty(200).uniform_(-0.5 + FROM_TIE, 0.5 - FROM_TIE, generator=generator)
    off[:40] = 0.0  # exactly on a step
    x = torch.cat([(steps + off) * scale, torch.tensor([0.0, 1.0, 6.0])])  # and on the ends of the activations
    return spec, torch.tensor(scale), torch.tensor(zero_point, dtype=torch.int32), x


def run(function, x: Tensor) -> tuple[Tensor, Tensor]:
    """Output, and gradient for a gradient of another value at each element."""
    x = x.clone().requires_grad_()
    y = function(x)
    y.backward(torch.linspace(-2.0, 3.0, y.numel(), dtype=y.dtype).view_as(y))
    return y.detach(), x.grad


@given(case=cases(), activation=st.sampled_from(list(ACTIVATIONS)))
def test_equals_torchs_fake_quantize_behind_the_activation(case, activation):
    """Forward and gradient, bit for bit; `torch.equal` calls -0.0 and 0.0 equal, as every later operator does."""
    spec, scale, zero_point, x = case
    y, grad = run(lambda t: fake_quantize(t, scale, zero_point, spec.qmin, spec.qmax, activation=activation), x)
    expected, expected_grad = run(
        lambda t: torch.fake_quantize_per_tensor_affine(
            ACTIVATIONS[activation](t), scale, zero_point, spec.qmin, spec.qmax
        ),
        x,
    )
    assert torch.equal(y, expected)
    assert torch.equal(grad, expected_grad)


@given(case=cases(), activation=st.sampled_from(list(ACTIVATIONS)))
def test_numbers_and_tensors_as_bounds_agree(case, activation):
    """Bounds are numbers on a CPU and tensors on an accelerator; the tensor path is taken when compiling, too."""
    spec, scale, zero_point, x = case
    with mock.patch.object(torch.compiler, "is_compiling", return_value=True):
        tensors = grid(scale, zero_point, spec.qmin, spec.qmax, activation)
    numbers = grid(scale, zero_point, spec.qmin, spec.qmax, activation)
    assert isinstance(tensors.first, Tensor)
    assert isinstance(numbers.first, float)
    assert (float(tensors.first), float(tensors.last)) == (numbers.first, numbers.last)
    assert torch.equal(snap_(x.clone(), tensors), snap_(x.clone(), numbers))
    grads = torch.randn_like(x)
    by_tensors = pass_inside(grads, x, tensors.open_low, tensors.open_high)
    assert torch.equal(by_tensors, pass_inside(grads, x, numbers.open_low, numbers.open_high))


@given(case=cases(), activation=st.sampled_from(list(ACTIVATIONS)))
def test_the_formula_in_float64(case, activation):
    """y = clamp(round(x / s), a, b) s and its mask, written down again in the words of the docstring."""
    spec, scale, zero_point, x = case
    s, z, x = scale.double(), int(zero_point), x.double()
    a, b = spec.qmin - z, spec.qmax - z
    a = max(a, round(activation.low / float(s))) if activation.low > -math.inf else a
    b = min(b, round(activation.high / float(s))) if activation.high < math.inf else b
    inside = ((a - 0.5) * s < x) & (x < (b + 0.5) * s) & (x > activation.low) & (x < activation.high)

    y, grad = run(lambda t: fake_quantize(t, s, zero_point, spec.qmin, spec.qmax, activation=activation), x)
    assert y.dtype is torch.float64
    assert torch.equal(y, torch.round(x / s).clamp(a, b) * s)
    assert torch.equal(grad, torch.linspace(-2.0, 3.0, x.numel(), dtype=torch.double) * inside)


@given(case=cases(), activation=st.sampled_from(list(ACTIVATIONS)))
def test_twice_is_once_and_order_is_kept(case, activation):
    spec, scale, zero_point, x = case
    y = fake_quantize(x, scale, zero_point, spec.qmin, spec.qmax, activation=activation)
    again = fake_quantize(y, scale, zero_point, spec.qmin, spec.qmax, activation=activation)
    assert torch.equal(y, again)
    assert (y[x.argsort()].diff() >= 0).all()
    steps = y.double() / scale.double()
    assert (steps - steps.round()).abs().max() < 1e-4  # whole steps; y itself was rounded to float32 once


def test_ties_go_to_even():
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, -2.5])
    y = fake_quantize(x, torch.tensor(1.0), torch.tensor(0, dtype=torch.int32), -128, 127)
    assert y.tolist() == [0.0, 2.0, 2.0, -0.0, -2.0, -2.0]


def test_the_input_is_not_written_to():
    x = torch.randn(10)
    before = x.clone()
    fake_quantize(x, torch.tensor(0.1), torch.tensor(3, dtype=torch.int32), 0, 255, activation=RELU)
    fake_quantize_channels(x, torch.tensor(0.1), None, -127, 127)
    assert torch.equal(x, before)


@st.composite
def weights(draw):
    """A weight `[C, 40]` away from ties, with a scale and zero point per channel."""
    spec = draw(st.builds(IntSpec, bits=st.integers(2, 8), signed=st.booleans()))
    count = draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    scale = torch.exp2(torch.empty(count).uniform_(-10, 3, generator=generator))
    zero_point = torch.randint(spec.qmin, spec.qmax + 1, (count,), generator=generator, dtype=torch.int32)
    steps = torch.randint(-300, 300, (count, 40), generator=generator)
    off = torch.empty(count, 40).uniform_(-0.5 + FROM_TIE, 0.5 - FROM_TIE, generator=generator)
    return spec, scale, zero_point, (steps + off) * scale[:, None]


@given(case=weights(), symmetric=st.booleans(), last_axis=st.booleans())
def test_channels_equal_torchs_fake_quantize(case, symmetric, last_axis):
    spec, scale, zero_point, x = case
    if symmetric and spec.signed:
        given_zero, zero_point = None, torch.zeros_like(zero_point)
    else:
        given_zero = zero_point
    axis, x = (1, x.T.contiguous()) if last_axis else (0, x)
    y, grad = run(lambda t: fake_quantize_channels(t, scale, given_zero, spec.qmin, spec.qmax, axis=axis), x)
    expected, expected_grad = run(
        lambda t: torch.fake_quantize_per_channel_affine(t, scale, zero_point, axis, spec.qmin, spec.qmax), x
    )
    assert torch.equal(y, expected)
    assert torch.equal(grad, expected_grad)


@given(case=weights())
def test_one_channel_is_the_whole_tensor(case):
    spec, scale, zero_point, x = case
    for c in range(len(scale)):
        whole = fake_quantize(x[c], scale[c], zero_point[c], spec.qmin, spec.qmax)
        assert torch.equal(fake_quantize_channels(x, scale, zero_point, spec.qmin, spec.qmax)[c], whole)


def test_a_range_that_clips_nothing_passes_every_gradient():
    x = torch.randn(3, 50)
    scale = x.abs().amax(1) / 127
    y, grad = run(lambda t: fake_quantize_channels(t, scale, None, -127, 127, clips=False), x)
    masked, masked_grad = run(lambda t: fake_quantize_channels(t, scale, None, -127, 127, clips=True), x)
    assert torch.equal(y, masked)
    assert torch.equal(grad, torch.linspace(-2.0, 3.0, 150).view(3, 50))
    assert torch.equal(grad, masked_grad)


@pytest.mark.parametrize("clips", [True, False])
def test_what_channels_save_for_backward(clips):
    """Nothing where no mask is needed; else the weight and its scale."""
    saved: list[Tensor] = []
    x = torch.randn(8, 100, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        fake_quantize_channels(x, torch.ones(8), None, -127, 127, clips=clips)
    assert sum(t.numel() for t in saved) == (808 if clips else 0)
