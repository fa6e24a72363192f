from __future__ import annotations

import importlib
from collections import Counter

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import qat
from qat.errors import ConfigError, ExportError
from qat.runtime import load


def constants(model: onnx.ModelProto) -> dict[str, object]:
    return {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}


def test_graph_is_quantize_dequantize_pairs_with_int8_weights(integer, tmp_path):
    artifact = qat.export(integer, tmp_path / "model.onnx")
    model = onnx.load(artifact.path)
    onnx.checker.check_model(model, full_check=True)
    kinds = Counter(n.op_type for n in model.graph.node)
    assert kinds["Conv"] == 3
    assert kinds["Gemm"] == 1
    assert kinds["GlobalAveragePool"] == 1  # not ReduceMean, which runtimes leave in float
    assert not kinds["Relu"]  # the lower end of the grid is the activation
    assert not kinds["ReduceMean"]
    assert not kinds["BatchNormalization"]
    assert kinds["QuantizeLinear"] == len(artifact.sites)
    values = constants(model)
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in values:
            assert str(values[node.input[0]].dtype) in ("int8", "int32")


def test_opset_names_and_free_batch(integer, tmp_path):
    artifact = qat.export(integer, tmp_path / "model.onnx")
    model = onnx.load(artifact.path)
    assert [(o.domain, o.version) for o in model.opset_import if o.domain == ""] == [("", 21)]
    assert [i.name for i in model.graph.input] == ["x"]
    assert [o.name for o in model.graph.output] == ["output"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    run = load(artifact)
    for batch in (1, 2, 7, 64):
        assert run(torch.randn(batch, 3, 8, 8)).shape == (batch, 5)


def test_every_pair_has_constants_of_its_own(integer, tmp_path):
    model = onnx.load(qat.export(integer, tmp_path / "model.onnx").path)
    pairs = [n for n in model.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    used = [name for n in pairs for name in n.input[1:] if name]
    assert len(used) == len(set(used))


def test_no_unused_constant_and_no_path_of_the_machine(integer, tmp_path):
    path = qat.export(integer, tmp_path / "model.onnx").path
    model = onnx.load(path)
    used = {name for n in model.graph.node for name in n.input}
    assert {i.name for i in model.graph.initializer} <= used
    assert b".py" not in path.read_bytes()
    assert all(conv.attribute for conv in model.graph.node if conv.op_type == "Conv")
    for conv in (n for n in model.graph.node if n.op_type == "Conv"):
        assert "kernel_shape" in {a.name for a in conv.attribute}


def test_metadata_says_what_it_is(integer, tmp_path):
    model = onnx.load(qat.export(integer, tmp_path / "model.onnx").path)
    about = {p.key: p.value for p in model.metadata_props}
    assert about["recipe"] == "w8a8"
    assert about["target"] == "onnxruntime"
    assert about["model"] == "SmallNet"


def test_same_model_twice_is_the_same_file(integer, tmp_path):
    first, second = (qat.export(integer, tmp_path / name).path for name in ("a.onnx", "b.onnx"))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("bits", [4, 6])
@pytest.mark.runtime
def test_narrow_activations_are_clamped_in_the_file_too(small_net, images, tmp_path, bits):
    recipe = qat.QuantRecipe.parse("w8a8")
    narrow = {**vars(recipe), "activation": type(recipe.activation)(**{**vars(recipe.activation), "bits": bits})}
    prepared = qat.prepare(small_net, images[:2], qat.QuantRecipe(**{**narrow, "name": f"w8a{bits}"}))
    qat.calibrate(prepared, [images])
    artifact = qat.export(qat.convert(prepared), tmp_path / "model.onnx")
    assert sum(n.op_type == "Clip" for n in onnx.load(artifact.path).graph.node) == len(artifact.sites)
    beyond = 3 * images  # outside the calibrated range: without the Clip these would use all 256 integers
    integer = qat.convert(prepared)
    for optimize in (False, True):
        assert (load(artifact, optimize=optimize)(beyond) - integer(beyond)).abs().max() < 1.5 * step(integer)


def step(integer) -> float:
    """One step of the output's grid."""
    return float(next(n for n in reversed(integer.graph.nodes) if n.op == "output").all_input_nodes[0].args[1])


def test_float_model_exports_with_inputs_given(small_net, images, tmp_path):
    artifact = qat.export(small_net, tmp_path / "float.onnx", (images[:2],))
    assert artifact.target is None
    rounding = 1e-5  # two orders of summation in float32, values of order 1
    assert (load(artifact)(images) - small_net(images)).abs().max() < rounding


def test_float_model_without_inputs(small_net, tmp_path):
    with pytest.raises(ConfigError, match="export of a float model needs example_inputs"):
        qat.export(small_net, tmp_path / "float.onnx")


def test_unknown_suffix(integer, tmp_path):
    with pytest.raises(ConfigError, match=r"cannot export to 'model.tflite'; known suffixes: .onnx, .pt2"):
        qat.export(integer, tmp_path / "model.tflite")


class Bessel(nn.Module):
    def forward(self, x):
        return torch.special.bessel_j0(x)


def test_operator_that_the_exporter_does_not_know(tmp_path):
    with pytest.raises(ExportError, match=r"does not know how to write the model.*bessel_j0"):
        qat.export(Bessel(), tmp_path / "model.onnx", (torch.randn(2, 3),))
    assert list(tmp_path.iterdir()) == []


class BakedBatch(nn.Module):
    def forward(self, x):
        return x.reshape(2, 3, 4)


def test_batch_size_baked_into_the_model(tmp_path):
    with pytest.raises(ExportError, match="free batch size"):
        qat.export(BakedBatch(), tmp_path / "model.onnx", (torch.randn(2, 12),))


def test_disk_full_leaves_the_previous_file(integer, tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"previous")

    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(ExportError, match="No space left on device"):
        qat.export(integer, path)
    assert path.read_bytes() == b"previous"
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_interrupt_leaves_nothing(integer, tmp_path, monkeypatch):
    def interrupt(self, data):
        raise KeyboardInterrupt

    monkeypatch.setattr("pathlib.Path.write_bytes", interrupt)
    with pytest.raises(KeyboardInterrupt):
        qat.export(integer, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_folder_that_is_a_file(integer, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match=r"cannot write .*model.onnx"):
        qat.export(integer, tmp_path / "file" / "model.onnx")


def test_another_target_needs_the_same_grids(prepared, integer, tmp_path):
    assert qat.export(integer, tmp_path / "model.onnx", target="onnxruntime_vnni").target.name == "onnxruntime_vnni"
    signed = {"name": "mine", "activation_signed": True}
    with pytest.raises(
        ConfigError, match=r"trained for onnxruntime, whose grids mine does not compute on: activation_s"
    ):
        qat.export(integer, tmp_path / "model.onnx", target=signed)


def test_a_file_that_protobuf_cannot_hold(integer, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.import_module("qat.export.onnx"), "LARGEST", 100)  # bytes
    with pytest.raises(ExportError, match=r"model.onnx would hold .* GB of weights, .* ends at 2 GiB: quantize the"):
        qat.export(integer, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_the_checker_reads_the_file_before_it_gets_its_name(integer, tmp_path, monkeypatch):
    def refuse(path: str, *, full_check: bool) -> None:
        assert onnx.load(path).graph.node
        raise onnx.checker.ValidationError("no such operator")

    monkeypatch.setattr(onnx.checker, "check_model", refuse)
    with pytest.raises(ExportError, match=r"the ONNX checker rejects model.onnx: no such operator"):
        qat.export(integer, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
