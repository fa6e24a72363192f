from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest
from onnx import numpy_helper

import qat
from qat import machine
from qat.export.tensorrt_lint import tensorrt_findings
from qat.runtime import load
from qat.verify import output_step


@pytest.fixture
def symmetric(small_net, images, tmp_path) -> tuple[qat.PreparedModel, qat.Artifact]:
    prepared = qat.prepare(small_net, images[:2], target="tensorrt")
    qat.calibrate(prepared, [images])
    prepared.eval()
    return prepared, qat.export(qat.convert(prepared), tmp_path / "model.onnx")


@pytest.mark.runtime
def test_our_file_keeps_every_rule_and_runs(symmetric, images):
    prepared, artifact = symmetric
    assert tensorrt_findings(artifact.path) == ()
    integer = qat.convert(prepared)
    exact = not machine.saturation("tensorrt", machine.cpu())  # onnxruntime's 8-bit sums saturate without VNNI
    for optimize in (False, True)[: 1 + exact]:
        assert (load(artifact, optimize=optimize)(images) - integer(images)).abs().max() < 1.5 * output_step(integer)
    if exact:
        assert qat.verify(prepared, artifact, [images]).passed


def test_default_target_breaks_them(integer, tmp_path):
    found = tensorrt_findings(qat.export(integer, tmp_path / "model.onnx").path)
    assert any("zero point" in line for line in found)
    assert any("stores uint8; it takes int8" in line for line in found)
    assert any(line.startswith("Conv ") and "its bias comes from DequantizeLinear" in line for line in found)


def first(graph: onnx.GraphProto, op: str) -> onnx.NodeProto:
    return next(n for n in graph.node if n.op_type == op)


def without_kernel_shape(graph: onnx.GraphProto) -> None:
    attributes = first(graph, "Conv").attribute
    attributes.remove(next(a for a in attributes if a.name == "kernel_shape"))


def with_float_input(graph: onnx.GraphProto) -> None:
    first(graph, "Add").input[0] = "x"


def with_broken_scale(graph: onnx.GraphProto) -> None:
    name = first(graph, "QuantizeLinear").input[1]
    old = next(i for i in graph.initializer if i.name == name)
    old.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(old) * 0, name))


def with_scales_of_inputs(graph: onnx.GraphProto) -> None:
    weight = next(n for n in graph.node if n.output[0] == first(graph, "Conv").input[1])
    next(a for a in weight.attribute if a.name == "axis").i = 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (with_scales_of_inputs, "its weight has a scale for each index of axis 1; it takes axis 0"),
        (without_kernel_shape, "has no kernel_shape"),
        (with_float_input, "input x is not quantized, the other is"),
        (with_broken_scale, "its scale is not positive and finite"),
    ],
)
def test_what_a_rule_finds(symmetric, damage: Callable[[onnx.GraphProto], None], message):
    _, artifact = symmetric
    model = onnx.load(artifact.path)
    damage(model.graph)
    onnx.save(model, artifact.path)
    assert any(message in line for line in tensorrt_findings(artifact.path))
