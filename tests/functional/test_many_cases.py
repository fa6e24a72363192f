"""The core numerics on ten thousand ranges, grids and values each: what holds for all of them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qat.functional.affine import dequantize, quantize
from qat.functional.ranges import qparams
from qat.functional.ste import fake_quantize
from qat.spec import IntSpec, Scheme

pytestmark = pytest.mark.slow
CASES = 10_000
FLOATS = st.floats(-1e6, 1e6, width=32)
GRIDS = st.builds(
    lambda bits, signed, scheme: IntSpec(
        bits=bits, signed=signed, scheme=scheme, narrow=signed and scheme is Scheme.SYMMETRIC
    ),
    st.integers(2, 8), st.booleans(), st.sampled_from(list(Scheme)),
)  # fmt: skip
VALUES = st.lists(FLOATS, min_size=1, max_size=8).map(torch.tensor)
ROUNDING = 1e-4  # of a step: x / s and q * s are float32, q up to 255


@settings(max_examples=CASES)
@given(GRIDS, FLOATS, FLOATS)
def test_a_grid_holds_its_range_and_zero(spec, a, b):
    low, high = torch.tensor(min(a, b)), torch.tensor(max(a, b))
    scale, zero = qparams(low, high, spec)
    assert float(scale) > 0
    assert spec.qmin <= int(zero) <= spec.qmax
    ends = dequantize(torch.tensor([spec.qmin, spec.qmax]), scale, zero)
    if spec.scheme is Scheme.SYMMETRIC and not spec.signed:
        ends[0] = -ends[1]  # the side with one step more is not needed
    assert ends[0] <= low + scale * (0.5 + ROUNDING)
    assert high <= ends[1] + scale * (0.5 + ROUNDING)
    assert float(dequantize(quantize(torch.zeros(1), scale, zero, spec.qmin, spec.qmax), scale, zero)) == 0.0


@settings(max_examples=CASES)
@given(GRIDS, FLOATS, FLOATS, VALUES)
def test_fake_quantization_is_what_the_runtime_computes(spec, a, b, x):
    scale, zero = qparams(torch.tensor(min(a, b)), torch.tensor(max(a, b)), spec)
    y = fake_quantize(x, scale, zero, spec.qmin, spec.qmax)
    integers = quantize(x, scale, zero, spec.qmin, spec.qmax)
    assert torch.equal(y, dequantize(integers, scale, zero))
    assert torch.equal(quantize(y, scale, zero, spec.qmin, spec.qmax), integers)  # once on the grid, always
    order = x.argsort()
    assert (y[order].diff() >= 0).all()
