"""What `load` refuses before any runtime runs."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

import qat
from qat.errors import ArtifactError, ConfigError
from qat.runtime import load, require_installed


def test_file_of_another_target_or_model(integer, small_net, images, tmp_path):
    artifact = qat.export(integer, tmp_path / "model.onnx")
    qat.export(integer, artifact.path, target="onnxruntime_vnni")
    with pytest.raises(
        ArtifactError, match=r"exported for target onnxruntime_vnni, not onnxruntime: another export wrote"
    ):
        load(artifact)
    qat.export(small_net, artifact.path, (images[:2],), target="onnxruntime")
    with pytest.raises(ArtifactError, match="exported from weights"):
        load(artifact)


def test_suffix_that_nothing_reads(integer, tmp_path):
    artifact = replace(qat.export(integer, tmp_path / "model.onnx"), path=tmp_path / "model.tflite")
    with pytest.raises(ConfigError, match=r"no runtime here runs 'model.tflite'; known suffixes: .onnx"):
        load(artifact)


@pytest.fixture
def without_openvino(monkeypatch):
    for name in [n for n in sys.modules if n.partition(".")[0] == "openvino"]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("qat.runtime.openvino", "qat.export.openvino"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "openvino", None)  # importing it raises ImportError


def test_package_that_is_not_installed(integer, tmp_path, without_openvino):
    with pytest.raises(
        ConfigError, match=r"target openvino needs the package `openvino`: run `uv sync --extra openvino`"
    ):
        require_installed(qat.Target.parse("openvino"))
    with pytest.raises(
        ConfigError,
        match=r"export for openvino needs a package that is not installed .*: run `uv sync --extra openvino`",
    ):
        qat.export(integer, tmp_path / "model.xml", target="openvino")
    artifact = replace(qat.export(integer, tmp_path / "model.onnx"), path=tmp_path / "model.xml")
    with pytest.raises(ConfigError, match="uv sync --extra openvino` or `pip install openvino"):
        load(artifact)
    require_installed(qat.Target.parse("onnxruntime"))


def test_a_path_is_no_artifact(tmp_path):
    with pytest.raises(ConfigError, match=r"need the Artifact that qat\.export returns.*got '.*model\.onnx'"):
        load(str(tmp_path / "model.onnx"))
