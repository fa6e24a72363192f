from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qat.functional.affine import dequantize, quantize
from qat.functional.histogram import best_range, centers, count, reach_of, squared_error, widen
from qat.functional.ranges import qparams, tensor_range
from qat.spec import IntSpec

BINS = 2048
FLOATS = st.integers(-(2**20), 2**20).map(lambda n: n / 2**10)  # no number so small that dividing it leaves zero
# A histogram knows a value to half a bin, and the search takes steps of 1 / 64: so near is its error to the least one
NEAR = 1.02


@given(values=st.lists(FLOATS, min_size=1, max_size=40), bins=st.sampled_from([4, 64, 2048]))
def test_bins_are_counted_as_numpy_counts_them(values, bins):
    x = torch.tensor(values)
    reach = reach_of(*tensor_range(x, None))
    assert float(reach) == (0.0 if not x.any() else 2.0 ** (math.frexp(float(x.abs().max()))[1]))
    expected = torch.histc(x[x != 0].double(), bins, -float(reach), float(reach)) if x.any() else torch.zeros(bins)
    assert torch.equal(count(x, reach, bins, None).double(), expected.double())


@given(values=st.lists(FLOATS, min_size=1, max_size=40), doublings=st.integers(0, 14))
def test_a_grown_histogram_is_the_one_of_the_wider_range(values, doublings):
    x = torch.tensor(values)
    reach = reach_of(*tensor_range(x, None))
    new = reach * 2.0**doublings
    assert torch.equal(widen(count(x, reach, 64, None), reach, new), count(x, new, 64, None))


def test_channels_grow_each_for_itself():
    x = torch.tensor([[1.5, -0.3, 0.2], [100.0, 3.0, -7.0], [0.0, 0.0, 0.0]])
    reach = reach_of(*tensor_range(x, 0))
    assert reach.tolist() == [2.0, 128.0, 0.0]
    new = torch.tensor([16.0, 128.0, 4.0])
    assert torch.equal(widen(count(x, reach, 64, 0), reach, new), count(x, new, 64, 0))
    assert torch.equal(count(x, reach, 64, 0)[1], count(x[1], reach[1], 64, None))
    assert torch.equal(count(x.T.contiguous(), reach, 64, 1), count(x, reach, 64, 0))


def test_centers_are_half_way_between_the_ends_of_bins():
    assert centers(torch.tensor([1.0, 4.0]), 4).tolist() == [[-0.75, -0.25, 0.25, 0.75], [-3.0, -1.0, 1.0, 3.0]]


@given(
    spec=st.builds(
        IntSpec, bits=st.integers(2, 8), signed=st.booleans(), scheme=st.sampled_from(["affine", "symmetric"])
    ),
    low=st.floats(-8.0, 0.0),
    high=st.floats(0.125, 8.0),
)
def test_the_error_is_that_of_the_quantizer(spec, low, high):
    values, counts = torch.linspace(-4.0, 4.0, 81), torch.arange(81.0)
    low, high = torch.tensor(low), torch.tensor(high)
    scale, zero = qparams(low, high, spec)
    on_grid = dequantize(quantize(values, scale, zero, spec.qmin, spec.qmax), scale, zero)
    expected = float((counts * (on_grid - values).square()).sum())
    assert float(squared_error(counts, values, low, high, spec)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("data", ["normal", "heavy", "relu", "shifted"])
def test_no_range_of_a_brute_force_search_is_better(bits, data):
    x = torch.randn(20_000)
    x = {"normal": x, "heavy": x**3, "relu": x.relu(), "shifted": x + 1}[data]
    affine = data in ("relu", "shifted")
    spec = IntSpec(bits=bits, signed=not affine, narrow=not affine, scheme="affine" if affine else "symmetric")
    low, high = tensor_range(x, None)
    reach = reach_of(low, high)
    found = best_range(count(x, reach, BINS, None), reach, low, high, spec)

    def error(low, high):
        return float(squared_error(torch.ones_like(x), x, low, high, spec))

    fractions = torch.linspace(0.02, 1.0, 50)
    lows = [low * t for t in fractions[::4]] if data == "shifted" else [low]
    least = min(
        error(min(lo, -t * high) if not affine else lo, t * high)
        for t in fractions
        for lo in (lows if affine else [-t * high])
    )
    assert error(*found) <= NEAR * least
    assert low <= found[0] <= 0 <= found[1] <= high


def test_two_bits_of_a_normal_distribution():
    """The best ternary quantizer of N(0, 1) has the step 1.224 (Max 1960, IRE Trans. Inf. Theory 6, uniform, N = 3)."""
    x = torch.randn(100_000)
    low, high = tensor_range(x, None)
    reach = reach_of(low, high)
    found = best_range(count(x, reach, BINS, None), reach, low, high, IntSpec(bits=2, narrow=True))
    assert float(found[1]) == pytest.approx(1.224, rel=0.03)  # the search takes steps of 1 / 64 of the range, here 0.07
