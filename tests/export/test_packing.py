from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper

import qat
from qat.export import onnx as writer
from qat.runtime import load

TYPES = {TensorProto.INT8: "int8", TensorProto.INT4: "int4"}


@pytest.fixture
def narrow(small_net, images) -> qat.PreparedModel:
    """4-bit weights between a first and a last layer of 7."""
    prepared = qat.prepare(small_net, images, "w4a8")
    qat.calibrate(prepared, [images])
    return prepared.eval()


def weights(path) -> dict[str, str]:
    found = onnx.load(path).graph.initializer
    return {i.name: TYPES[i.data_type] for i in found if len(i.dims) > 1 and i.data_type in TYPES}


def test_weights_of_four_bits_take_half_a_byte(narrow, tmp_path):
    artifact = qat.export(qat.convert(narrow), tmp_path / "model.onnx")
    assert Counter(weights(artifact.path).values()) == {"int4": 2, "int8": 2}
    model = onnx.load(artifact.path)
    onnx.checker.check_model(model, full_check=True)
    (depthwise,) = [i for i in model.graph.initializer if list(i.dims) == [8, 1, 3, 3]]
    assert len(depthwise.raw_data) == 8 * 9 / 2
    stored = numpy_helper.to_array(depthwise).astype(np.int8)
    assert np.array_equal(stored, qat.convert(narrow).get_submodule("depthwise").weight.numpy())


def test_wider_weights_stay_as_they_are(small_net, images, tmp_path):
    prepared = qat.prepare(small_net, images)
    qat.calibrate(prepared, [images])
    artifact = qat.export(qat.convert(prepared.eval()), tmp_path / "model.onnx")
    assert set(weights(artifact.path).values()) == {"int8"}
    assert "Cast" not in {n.op_type for n in onnx.load(artifact.path).graph.node}


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.runtime
def test_onnxruntime_computes_the_same_on_the_same_integer_kernels(small_net, images, tmp_path, bits, monkeypatch):
    recipe = qat.QuantRecipe.parse(
        {**qat.presets.load_preset("quant", "w8a8"), "override": {"*": {"weight": {"bits": bits}}}}
    )
    prepared = qat.prepare(small_net, images, recipe)
    qat.calibrate(prepared, [images])
    integer = qat.convert(prepared.eval())
    packed = qat.export(integer, tmp_path / "packed.onnx")
    monkeypatch.setattr(writer, "pack_weights", lambda model: 0)
    plain = qat.export(integer, tmp_path / "plain.onnx")
    assert set(weights(packed.path).values()) == {"int4"}
    assert set(weights(plain.path).values()) == {"int8"}
    x = torch.rand(32, 3, 8, 8) * 4 - 2
    for optimize in (False, True):
        assert torch.equal(load(packed, optimize=optimize)(x), load(plain, optimize=optimize)(x))
    assert kernels(packed.path, tmp_path) == kernels(plain.path, tmp_path)
    assert kernels(packed.path, tmp_path)["QLinearConv"] == 3


def kernels(path, folder) -> Counter[str]:
    """What onnxruntime makes of a file."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Counter(n.op_type for n in onnx.load(folder / "optimized.onnx").graph.node)
