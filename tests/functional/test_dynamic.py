"""Against onnxruntime itself, integers and floats bit for bit, and against the closed form."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from qat.functional.dynamic import dynamic_grid, dynamic_product, dynamic_quantize, integer_product

pytestmark = pytest.mark.runtime


def session(weight: torch.Tensor, scale: torch.Tensor, *, optimize: bool) -> ort.InferenceSession:
    """Our product in ONNX; without optimizations its integers are outputs too."""
    shown = [("y", TensorProto.FLOAT)]
    if not optimize:
        shown += [
            ("q", TensorProto.UINT8),
            ("s", TensorProto.FLOAT),
            ("z", TensorProto.UINT8),
            ("n", TensorProto.INT32),
        ]
    graph = helper.make_graph(
        [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
            helper.make_node("MatMulInteger", ["q", "w", "z"], ["n"]),
            helper.make_node("Cast", ["n"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["s", "sw"], ["steps"]),
            helper.make_node("Mul", ["f", "steps"], ["y"]),
        ],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in shown],
        [numpy_helper.from_array(weight.numpy(), "w"), numpy_helper.from_array(scale.numpy(), "sw")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = ort.SessionOptions()
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@given(
    seed=st.integers(0, 1000),
    shape=st.sampled_from([(1, 64), (5, 7, 32), (2, 3, 4, 100), (3, 700)]),
    size=st.sampled_from([1e-6, 1.0, 1e4]),
    shift=st.sampled_from([-3.0, 0.0, 0.4, 3.0]),
)
@settings(max_examples=30, deadline=None)
def test_as_onnxruntime_computes_it_bit_for_bit(seed: int, shape: tuple[int, ...], size: float, shift: float) -> None:
    g = torch.Generator().manual_seed(seed)
    x = (torch.randn(shape, generator=g) + shift) * size
    weight = torch.randint(-63, 64, (shape[-1], 33), generator=g, dtype=torch.int8)
    scale = torch.rand(33, generator=g) + 1e-3
    y, *integers = session(weight, scale, optimize=False).run(None, {"x": x.numpy()})
    q, s, z = dynamic_quantize(x)
    found = (q.numpy(), s.numpy(), z.to(torch.uint8).numpy(), integer_product(q, z, weight).numpy())
    for mine, theirs in zip(found, integers, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    np.testing.assert_array_equal(dynamic_product(x, weight, scale).numpy(), y)
    fused = session(weight, scale, optimize=True).run(None, {"x": x.numpy()})[0]
    np.testing.assert_array_equal(dynamic_product(x, weight, scale).numpy(), fused)


def test_zeros_have_a_grid() -> None:
    scale, zero_point = dynamic_grid(torch.zeros(3, 4))
    assert (scale.item(), zero_point.item()) == (1.0, 0.0)
    assert torch.equal(
        dynamic_product(torch.zeros(3, 4), torch.ones(4, 2, dtype=torch.int8), torch.ones(2)), torch.zeros(3, 2)
    )


def test_the_grid_covers_zero_and_both_ends() -> None:
    scale, zero_point = dynamic_grid(torch.tensor([2.0, 51.0]))
    assert (scale.item(), zero_point.item()) == (torch.tensor(0.2).item(), 0.0)
    scale, zero_point = dynamic_grid(torch.tensor([-2.0, -51.0]))
    assert (scale.item(), zero_point.item()) == (torch.tensor(0.2).item(), 255.0)
