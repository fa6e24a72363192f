"""TensorRT's engine, where there is one: a machine with an NVIDIA GPU and the package."""

from __future__ import annotations

import importlib.util

import pytest
import torch

import qat
from qat.errors import ConfigError
from qat.runtime import load
from qat.runtime.coverage import Coverage, Kind
from qat.runtime.tensorrt import TensorRTRuntime, executed

HERE = importlib.util.find_spec("tensorrt") is not None and torch.cuda.is_available()


@pytest.mark.runtime
@pytest.mark.gpu
@pytest.mark.skipif(not HERE, reason="needs TensorRT and an NVIDIA GPU")
def test_parity_of_the_engine(trained, pictures, tmp_path):
    prepared = trained("tensorrt")
    artifact = qat.export(qat.convert(prepared), tmp_path / "model.onnx")
    engine = TensorRTRuntime(artifact)
    assert engine.inputs == artifact.inputs
    report = qat.verify(prepared, artifact, [pictures], runtimes=[engine])
    assert report.stage(engine.name).agreement >= 99.5
    assert not engine.coverage().islands


@pytest.mark.skipif(HERE, reason="TensorRT is here")
def test_without_it_the_error_says_what_checks_the_file_instead(integer, tmp_path):
    artifact = qat.export(integer, tmp_path / "model.onnx")
    with pytest.raises(ConfigError, match=r"TensorRT (is not installed|needs an NVIDIA GPU)"):
        TensorRTRuntime(artifact)


LAYERS = [
    {
        "Name": "to_int8",
        "LayerType": "Reformat",
        "Inputs": [{"Name": "x", "Format/Datatype": "Row major linear FP32"}],
        "Outputs": [{"Name": "x8", "Format/Datatype": "Int8 NC/32HW32"}],
    },
    {
        "Name": "conv1",
        "LayerType": "CaskConvolution",
        "Inputs": [{"Name": "x8", "Format/Datatype": "Int8 NC/32HW32"}],
        "Outputs": [{"Name": "y", "Format/Datatype": "FP32 NC/32HW32"}],
    },
    {
        "Name": "softmax",
        "LayerType": "CaskSoftMaxV2",
        "Inputs": [{"Name": "y", "Format/Datatype": "FP32 NC/32HW32"}],
        "Outputs": [{"Name": "z", "Format/Datatype": "FP32 NC/32HW32"}],
    },
]


def test_layers_of_the_inspector():
    coverage = Coverage(runtime="tensorrt", operators=executed(LAYERS))
    assert [o.kind for o in coverage.operators] == [Kind.BORDER, Kind.INTEGER, Kind.FLOAT]
    assert coverage.operators[2].inputs == ("conv1",)
    assert coverage.islands == ()


@pytest.mark.runtime
def test_a_further_runtime_is_a_stage_of_its_own(trained, pictures, tmp_path):
    prepared = trained("tensorrt")
    artifact = qat.export(qat.convert(prepared), tmp_path / "model.onnx")
    another = load(artifact)
    another.name = "another"
    report = qat.verify(prepared, artifact, [pictures], runtimes=[another], strict=False)
    assert report.stages[-2].name == "another"
    assert report.stages[-2].gated
    assert report.stages[-2].agreement == report.stages[-1].agreement
