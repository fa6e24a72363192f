from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from qat.functional.affine import broadcast, dequantize, quantize
from qat.functional.ranges import qparams
from qat.spec import IntSpec

SPECS = st.builds(IntSpec, bits=st.integers(2, 8), signed=st.booleans())
FLOATS = st.floats(-1e4, 1e4, width=32)


@st.composite
def grids(draw):
    """A grid, a scale of any size and a zero point anywhere on the grid."""
    spec = draw(SPECS)
    scale = draw(st.floats(2.0**-20, 2.0**10, width=32))
    zero_point = draw(st.integers(spec.qmin, spec.qmax))
    return spec, torch.tensor(scale), torch.tensor(zero_point, dtype=torch.int32)


def with_ties(scale: torch.Tensor, seed: int) -> torch.Tensor:
    """400 values around the grid: random, on whole steps, and on half steps (ties, if the scale is a power of two)."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randint(-300, 300, (100,), generator=generator).float()
    random = torch.randn(200, generator=generator) * 200
    return torch.cat([random, steps, steps + 0.5]) * scale


def numpy_quantize(x: np.ndarray, scale: np.float32, zero_point: int, qmin: int, qmax: int) -> np.ndarray:
    return np.clip(np.rint(x / scale).astype(np.float64) + zero_point, qmin, qmax).astype(np.int64)


@given(grid=grids(), seed=st.integers(0, 2**16), power_of_two=st.booleans())
def test_quantize_equals_numpy(grid, seed, power_of_two):
    spec, scale, zero_point = grid
    scale = torch.exp2(torch.log2(scale).round()) if power_of_two else scale
    x = with_ties(scale, seed)
    q = quantize(x, scale, zero_point, spec.qmin, spec.qmax)
    expected = numpy_quantize(x.numpy(), np.float32(scale), int(zero_point), spec.qmin, spec.qmax)
    assert q.dtype is (torch.int8 if spec.qmin < 0 else torch.uint8)
    np.testing.assert_array_equal(q.numpy(), expected)


@pytest.mark.parametrize(("x", "q"), [(0.5, 0), (1.5, 2), (2.5, 2), (-0.5, 0), (-1.5, -2), (-2.5, -2)])
def test_ties_go_to_even(x, q):
    assert quantize(torch.tensor(x), torch.tensor(1.0), torch.tensor(0), -128, 127).item() == q


@pytest.mark.parametrize(("signed", "kind"), [(True, TensorProto.INT8), (False, TensorProto.UINT8)])
@pytest.mark.parametrize("scale", [0.25, 1.0, 0.0173, 3.7])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_quantize_is_onnx_quantize_linear(signed, kind, scale, axis):
    spec = IntSpec(signed=signed)
    shape = () if axis is None else (3,)
    scales = torch.full(shape, scale) * (1.0 if axis is None else torch.tensor([1.0, 0.5, 2.0]))
    zeros = torch.full(shape, 3 if signed else 130, dtype=torch.int32)
    x = with_ties(torch.tensor(scale), seed=1)[:399].reshape(3, -1)
    x = x if axis != 1 else x.T.contiguous()
    node = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], axis=axis or 0)
    graph = helper.make_graph(
        [node],
        "quantize",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape),
            helper.make_tensor_value_info("s", TensorProto.FLOAT, shape),
            helper.make_tensor_value_info("z", kind, shape),
        ],
        [helper.make_tensor_value_info("q", kind, x.shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    onnx.checker.check_model(model)
    inputs = {"x": x.numpy(), "s": scales.numpy(), "z": zeros.numpy().astype(np.int8 if signed else np.uint8)}
    (expected,) = ReferenceEvaluator(model).run(None, inputs)
    q = quantize(x, scales, zeros, spec.qmin, spec.qmax, axis=axis or 0)
    np.testing.assert_array_equal(q.numpy(), expected)


@given(grid=grids())
def test_every_integer_survives_a_round_trip(grid):
    spec, scale, zero_point = grid
    q = torch.arange(spec.qmin, spec.qmax + 1, dtype=torch.int8 if spec.qmin < 0 else torch.uint8)
    x = dequantize(q, scale, zero_point)
    assert torch.equal(quantize(x, scale, zero_point, spec.qmin, spec.qmax), q)
    assert torch.equal(x, (q.int() - zero_point).float() * scale)  # on the grid: whole steps from zero
    assert (x == 0).sum() == 1  # zero is one of them


@given(grid=grids(), seed=st.integers(0, 2**16))
def test_quantizing_twice_changes_nothing(grid, seed):
    spec, scale, zero_point = grid
    q = quantize(with_ties(scale, seed), scale, zero_point, spec.qmin, spec.qmax)
    again = quantize(dequantize(q, scale, zero_point), scale, zero_point, spec.qmin, spec.qmax)
    assert torch.equal(q, again)


@given(grid=grids(), values=st.lists(FLOATS, min_size=2, max_size=20))
def test_quantize_is_monotone_and_stays_on_the_grid(grid, values):
    spec, scale, zero_point = grid
    q = quantize(torch.tensor(values).sort().values, scale, zero_point, spec.qmin, spec.qmax).int()
    assert (q.diff() >= 0).all()
    assert spec.qmin <= q[0]
    assert q[-1] <= spec.qmax


@given(low=FLOATS, high=FLOATS, seed=st.integers(0, 2**16))
def test_inside_the_range_the_error_is_half_a_step(low, high, seed):
    spec = IntSpec(signed=False, scheme="affine")
    low, high = sorted((low, high))
    scale, zero_point = qparams(torch.tensor(low), torch.tensor(high), spec)
    x = torch.empty(200).uniform_(low, high, generator=torch.Generator().manual_seed(seed))
    x = x.clamp((spec.qmin - zero_point) * scale, (spec.qmax - zero_point) * scale)
    error = dequantize(quantize(x, scale, zero_point, 0, 255), scale, zero_point).double() - x.double()
    # the division rounds once: at most 2^-24 of 255 steps, beside the half step
    assert error.abs().max() <= scale.double() * (0.5 + 256 * 2.0**-24) + 1e-12


def test_values_beyond_the_grid_saturate():
    x = torch.tensor([1e30, -1e30, float("inf"), -float("inf")])
    q = quantize(x, torch.tensor(0.1), torch.tensor(7), 0, 255)
    assert q.tolist() == [255, 0, 255, 0]


def test_broadcast_along_any_axis():
    x = torch.empty(2, 3, 4)
    assert broadcast(torch.ones(3), x, 1).shape == (1, 3, 1)
    assert broadcast(torch.ones(4), x, -1).shape == (1, 1, 4)
    assert broadcast(torch.tensor(1.0), x, 1).shape == ()
