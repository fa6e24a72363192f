from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

import qat
from qat.artifact import Artifact
from qat.errors import ArtifactError
from qat.runtime import load
from qat.runtime.latency import interleaved
from qat.runtime.onnxruntime import intermediate_integers
from qat.verify import output_step

pytestmark = pytest.mark.runtime

# Integers are exact; the sums between them are float32 in torch and in onnxruntime, in different orders. A value within
# a rounding error (1e-6 relative) of the middle between two integers may fall to either side, by one step.
FLIPS = 0.002


def test_integers_of_every_layer_are_those_of_the_integer_model(integer, images, tmp_path):
    artifact = qat.export(integer, tmp_path / "model.onnx")
    found = intermediate_integers(artifact, images)
    quantize = torch.ops.quantized_decomposed.quantize_per_tensor.default
    wanted: list[torch.Tensor] = []

    class Record(torch.fx.Interpreter):
        def run_node(self, n):
            value = super().run_node(n)
            if n.target is quantize:
                wanted.append(value)
            return value

    Record(integer).run(images)
    assert list(found) == list(artifact.sites)
    for site, mine in zip(artifact.sites, wanted, strict=True):
        difference = (mine.int() - found[site].int()).abs()
        assert difference.max() <= 1, site
        assert (difference > 0).float().mean() <= FLIPS, site


def test_values_of_the_fused_graph_are_read_without_taking_it_apart(integer, images, tmp_path):
    artifact = qat.export(integer, tmp_path / "model.onnx")
    fused, plain = load(artifact).intermediates(images), load(artifact, optimize=False).intermediates(images)
    assert list(fused) == list(plain) == list(artifact.sites)
    for site, values in fused.items():
        assert (values.int() - plain[site].int()).abs().max() <= 1, site
    model = onnx.load(artifact.path)
    before = Counter(o.op for o in load(artifact).coverage().integer)
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            model.graph.output.append(onnx.helper.make_tensor_value_info(node.output[0], onnx.TensorProto.UINT8, None))
    onnx.save(model, artifact.path)
    after = Counter(o.op for o in load(artifact).coverage().integer)
    kernels = [op for op in before if op.startswith("Q")]
    assert {"QLinearConv", "QGemm"} <= set(kernels)
    assert {op: after[op] for op in kernels} == {op: before[op] for op in kernels}


@pytest.mark.parametrize("optimize", [False, True])
def test_output_is_that_of_the_integer_model(integer, images, tmp_path, optimize):
    run = load(qat.export(integer, tmp_path / "model.onnx"), optimize=optimize, threads=1)
    steps = (run(images) - integer(images)).abs() / output_step(integer)
    assert steps.max() < 1.5
    assert (steps > 0.5).float().mean() <= 0.05


def test_optimized_graph_is_integer_throughout(integer, tmp_path):
    artifact = qat.export(integer, tmp_path / "model.onnx")
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(artifact.path.read_bytes(), options, providers=["CPUExecutionProvider"])
    kinds = Counter(n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert kinds["QuantizeLinear"] == 1  # the input
    assert kinds["DequantizeLinear"] == 1  # the logits
    assert not {"Conv", "Gemm", "MatMul", "Add", "Relu", "GlobalAveragePool", "ReduceMean"} & set(kinds)


def test_truncated_file(integer, tmp_path):
    artifact = qat.export(integer, tmp_path / "model.onnx")
    artifact.path.write_bytes(artifact.path.read_bytes()[:500])
    with pytest.raises(ArtifactError, match=r"onnxruntime .* refuses model.onnx"):
        load(artifact)


def test_wrong_input_is_explained_in_the_runtimes_words(integer, tmp_path):
    run = load(qat.export(integer, tmp_path / "model.onnx"))
    with pytest.raises(ArtifactError, match=r"onnxruntime failed on model.onnx"):
        run(torch.randn(1, 4, 8, 8))


def test_a_node_that_fails_is_named_in_the_runtimes_words(tmp_path):
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    shape = onnx.numpy_helper.from_array(np.array([2, 4], np.int64), "shape")
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "shape"], ["y"], name="two_by_four")],
        "fixed",
        [helper.make_tensor_value_info("x", kind, ["batch", 4])],
        [helper.make_tensor_value_info("y", kind, None)],
        [shape],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), tmp_path / "model.onnx"
    )
    run = load(Artifact(path=tmp_path / "model.onnx", target=None, inputs=("x",), outputs=("y",)), threads=1)
    assert run(torch.zeros(2, 4)).shape == (2, 4)
    with pytest.raises(ArtifactError, match=r"(?s)onnxruntime failed on model.onnx: .*Name:'two_by_four'"):
        run(torch.zeros(3, 4))


def test_latency_is_measured_in_turn(integer, images, tmp_path):
    run = load(qat.export(integer, tmp_path / "model.onnx"))
    order: list[str] = []

    def named(name):
        class Spy(type(run)):
            def __init__(self):
                pass

            def __call__(self, x):
                order.append(name)
                return run(x)

        return Spy()

    taken = interleaved({"a": named("a"), "b": named("b")}, images[:1], repeats=3)
    assert order == ["a", "b"] * 8
    assert all(ms > 0 for ms in taken.values())
