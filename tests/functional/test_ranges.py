from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qat.functional.affine import dequantize, quantize
from qat.functional.ranges import EPS, qparams, tensor_range
from qat.spec import IntSpec, Scheme

ULPS = 4 * 2.0**-23  # a division and a product of float32, each rounded once, and room for their sum
SCHEMES = st.sampled_from(list(Scheme))
SPECS = st.builds(IntSpec, bits=st.integers(2, 8), signed=st.booleans(), scheme=SCHEMES)
AFFINE = IntSpec(signed=False, scheme=Scheme.AFFINE)
# wide enough for any activation, and no subnormals: what a step of 1e-12 can still tell apart
ENDS = st.one_of(st.just(0.0), st.floats(2.0**-18, 2.0**18, width=32), st.floats(-(2.0**18), -(2.0**-18), width=32))


@st.composite
def ranges(draw):
    """A range that may lie beside zero, or be one point."""
    low, high = sorted((draw(ENDS), draw(ENDS)))
    return torch.tensor(low), torch.tensor(high)


def ends(scale, zero_point, spec):
    """Smallest and largest value of a grid."""
    return (spec.qmin - zero_point).double() * scale.double(), (spec.qmax - zero_point).double() * scale.double()


@given(spec=SPECS, between=ranges())
def test_zero_is_on_the_grid(spec, between):
    scale, zero_point = qparams(*between, spec)
    assert spec.qmin <= zero_point <= spec.qmax
    assert scale > 0
    assert zero_point.dtype is torch.int32
    q = quantize(torch.tensor(0.0), scale, zero_point, spec.qmin, spec.qmax)
    assert dequantize(q, scale, zero_point).item() == 0.0


@given(between=ranges(), bits=st.integers(2, 8), signed=st.booleans())
def test_an_affine_grid_covers_the_range(between, bits, signed):
    """To within half a step on both sides, and fully on the longer side of zero."""
    spec = IntSpec(bits=bits, signed=signed, scheme=Scheme.AFFINE)
    low, high = (x.double() for x in between)
    scale, zero_point = qparams(*between, spec)
    first, last = ends(scale, zero_point, spec)
    step = scale.double()
    slack = ULPS * torch.maximum(low.abs(), high.abs())
    assert first <= low.clamp(max=0) + step / 2 + slack
    assert last >= high.clamp(min=0) - step / 2 - slack
    if -low > high:
        assert first <= low + slack
    if high > -low:
        assert last >= high - slack


@given(between=ranges(), bits=st.integers(2, 8))
def test_the_longer_side_costs_at_most_one_step_of_the_grid(between, bits):
    spec = IntSpec(bits=bits, signed=False, scheme=Scheme.AFFINE)
    low, high = between[0].clamp(max=0.0).double(), between[1].clamp(min=0.0).double()
    scale, _ = qparams(*between, spec)
    length = scale.double() * spec.qmax
    assert length <= high - low + scale.double() + ULPS * length + EPS * spec.qmax


@given(between=ranges(), bits=st.integers(2, 8), signed=st.booleans())
def test_a_symmetric_grid_reaches_the_larger_end(between, bits, signed):
    spec = IntSpec(bits=bits, signed=signed)
    scale, zero_point = qparams(*between, spec)
    largest = max(abs(float(x)) for x in between)
    assert zero_point == spec.symmetric_zero_point
    if largest:
        assert float(scale) * (spec.qmax - int(zero_point)) == pytest.approx(largest, rel=ULPS)


@given(between=ranges(), spec=SPECS, exponent=st.integers(-4, 4))
def test_the_grid_scales_with_the_range(between, spec, exponent):
    scale, zero_point = qparams(*between, spec)
    if scale <= EPS * 16 or not any(between):
        return
    factor = 2.0**exponent  # exact in float32
    scaled, same = qparams(between[0] * factor, between[1] * factor, spec)
    assert torch.equal(scaled, scale * factor)
    assert torch.equal(same, zero_point)


@given(between=ranges(), wider=ranges(), spec=SPECS)
def test_a_wider_range_has_no_finer_steps(between, wider, spec):
    """Up to one step of the grid's length, by which moving the zero point may move an affine scale."""
    scale, _ = qparams(*between, spec)
    more, _ = qparams(torch.minimum(between[0], wider[0]), torch.maximum(between[1], wider[1]), spec)
    steps = spec.qmax - spec.qmin
    share = (steps - 1) / steps if spec.scheme is Scheme.AFFINE else 1.0
    assert more.double() >= scale.double() * share * (1 - ULPS)


@given(pairs=st.lists(ranges(), min_size=1, max_size=6), spec=SPECS)
def test_per_channel_is_per_tensor_on_every_slice(pairs, spec):
    low, high = (torch.stack(x) for x in zip(*pairs, strict=True))
    scale, zero_point = qparams(low, high, spec)
    assert scale.shape == zero_point.shape == (len(pairs),)
    for c, pair in enumerate(pairs):
        one_scale, one_zero = qparams(*pair, spec)
        assert torch.equal(scale[c], one_scale)
        assert torch.equal(zero_point[c], one_zero)


def test_no_pixel_of_a_normalised_image_lies_on_a_tie():
    """Levels k / 255 as (x - 0.5) / 0.5: the last float bit must not decide where a pixel rounds."""
    levels = (torch.arange(256) / 255 - 0.5) / 0.5
    scale, zero_point = qparams(levels.min(), levels.max(), AFFINE)
    steps = levels.double() / scale.double()
    from_tie = (steps - steps.floor() - 0.5).abs()
    # nearest level: 127 / 255, a 1/510 of a step off; float32 moves x / s by less than 127 * 2^-22 = 0.00003 steps
    assert from_tie.min() > 1 / 600
    naive = levels.double() / (2 / 255)
    assert (naive - naive.floor() - 0.5).abs().max() < 1e-5  # what the rule is there for: every level is a tie
    assert zero_point in (127, 128)
    by_division = quantize(levels, scale, zero_point, 0, 255)
    assert torch.equal(by_division.float(), torch.round(levels * (1 / scale)) + zero_point)  # any way to compute it


@pytest.mark.parametrize("scheme", list(Scheme))
@pytest.mark.parametrize("signed", [True, False])
def test_a_dead_tensor_gets_a_positive_scale(scheme, signed):
    spec = IntSpec(signed=signed, scheme=scheme)
    scale, zero_point = qparams(torch.tensor(0.0), torch.tensor(0.0), spec)
    assert scale == torch.tensor(EPS)
    q = quantize(torch.zeros(3), scale, zero_point, spec.qmin, spec.qmax)
    assert torch.equal(dequantize(q, scale, zero_point), torch.zeros(3))


@pytest.mark.parametrize(("low", "high", "zero"), [(0.5, 6.0, 0), (-6.0, -0.5, 255), (0.0, 6.0, 0), (-6.0, 0.0, 255)])
def test_a_range_beside_zero_is_widened_to_it(low, high, zero):
    scale, zero_point = qparams(torch.tensor(low), torch.tensor(high), AFFINE)
    assert zero_point == zero
    assert scale == torch.tensor(6.0) / 255


def test_tensor_range_against_sorting():
    x = torch.randn(3, 4, 5)
    low, high = tensor_range(x, None)
    assert (low, high) == (x.flatten().sort().values[0], x.flatten().sort().values[-1])
    for axis in (0, 1, 2, -1):
        low, high = tensor_range(x, axis)
        rows = x.movedim(axis, 0).flatten(1).sort(1).values
        assert torch.equal(low, rows[:, 0])
        assert torch.equal(high, rows[:, -1])


def test_tensor_range_of_a_vector_per_channel_is_itself():
    x = torch.randn(4)
    low, high = tensor_range(x, 0)
    assert torch.equal(low, x)
    assert torch.equal(high, x)
