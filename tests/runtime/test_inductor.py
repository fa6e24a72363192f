from __future__ import annotations

import importlib
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._inductor.exc import InvalidCxxCompiler

import qat
from qat import machine
from qat.errors import ArtifactError, ConfigError, ExportError
from qat.runtime import load, require_installed
from qat.verify import output_step

pytest.importorskip("torchao", reason="the extra `inductor` is not installed")
pytestmark = [
    pytest.mark.runtime,
    pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor compiles C++"),
    # torchao 0.18 and torch 2.15, their own imports
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

FLIPS = 0.005  # integers are exact, the sums between them are float32; a value in the middle may fall to either side


@pytest.mark.slow  # a minute of C++ for each
@pytest.mark.skipif(bool(machine.saturation("inductor", machine.cpu())), reason="8-bit weights saturate without VNNI")
def test_parity_with_integer_kernels_alone(trained, pictures, tmp_path):
    prepared = trained("inductor")
    integer = qat.convert(prepared)
    artifact = qat.export(integer, tmp_path / "model.pt2")
    run = load(artifact)
    assert run.metadata["target"] == "inductor"
    coverage = run.coverage()
    called = [o.op for o in coverage.integer if "_qconv" in o.op or "_qlinear" in o.op]
    assert len(called) == 8  # seven convolutions and the linear layer
    assert [o.op.count("mean") for o in coverage.in_float] == [1]  # a kernel of its own; sums are the convolutions'
    with zipfile.ZipFile(artifact.path) as package:
        sizes = {Path(one.filename).suffix: one for one in package.infolist()}
        assert b".debug_line" not in package.read(sizes[".so"])
    assert sizes[".so"].compress_size < 0.5 * sizes[".so"].file_size
    for batch in (1, 2, 7, 64):
        torch.testing.assert_close(run(pictures[:batch]), integer(pictures[:batch]), rtol=0, atol=1e-5)
    assert qat.verify(prepared, artifact, [pictures]).stages[-1].agreement >= 99.5
    artifact.path.write_bytes(artifact.path.read_bytes()[:5000])
    with pytest.raises(ArtifactError, match=r"inductor 2.* refuses model.pt2"):
        load(artifact)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["conv-silu", "conv-hardswish", "linear-gelu", "linear-gelu_tanh"])
def test_a_curve_runs_inside_the_layer_before_it(kind, tmp_path):
    torch.manual_seed(0)
    curve = {"silu": nn.SiLU(), "hardswish": nn.Hardswish(), "gelu": nn.GELU(), "gelu_tanh": nn.GELU("tanh")}[
        kind.partition("-")[2]
    ]
    if kind.startswith("linear"):
        model, x = nn.Sequential(nn.Linear(32, 64), curve, nn.Linear(64, 16)), torch.randn(64, 32)
    else:
        model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), curve, nn.Conv2d(16, 16, 3))
        x = torch.randn(16, 3, 16, 16)
    target = replace(qat.Target.parse("inductor"), weight_bits=7)  # exact without VNNI too
    prepared = qat.prepare(model.eval(), x[:2], "w8a8", target)
    qat.calibrate(prepared, [x])
    integer = qat.convert(prepared)
    runtime = load(qat.export(integer, tmp_path / "model.pt2"), threads=1)
    coverage = runtime.coverage()
    assert (len(coverage.integer), coverage.in_float) == (2, ())
    steps = ((runtime(x) - integer(x)) / output_step(integer)).abs().round()
    assert steps.max() <= 1
    assert (steps > 0).float().mean() <= FLIPS


def test_no_compiler(integer, tmp_path, monkeypatch):
    def missing():
        raise InvalidCxxCompiler

    monkeypatch.setattr(importlib.import_module("qat.export.inductor"), "get_cpp_compiler", missing)
    with pytest.raises(ExportError, match=r"target inductor compiles C\+\+ and found no compiler: No working.*g\+\+"):
        qat.export(integer, tmp_path / "model.pt2", target="inductor")
    assert list(tmp_path.iterdir()) == []


def test_no_compiler_is_said_before_training(monkeypatch):
    def missing():
        raise InvalidCxxCompiler

    monkeypatch.setattr(importlib.import_module("torch._inductor.cpp_builder"), "get_cpp_compiler", missing)
    with pytest.raises(
        ConfigError, match=r"target inductor compiles C\+\+, and there is no compiler: No working.*g\+\+"
    ):
        require_installed(qat.Target.parse("inductor"))
