from __future__ import annotations

import pytest
import torch

import qat
from qat import machine
from qat.departure import compare_layers, first_departure
from qat.errors import ConfigError, DataError, NumericsError, ParityError
from qat.inputs import Inputs

pytestmark = pytest.mark.runtime


@pytest.fixture
def batches(images, small_net) -> list:
    labels = small_net(images).argmax(1)
    return [(images[:9], labels[:9]), (images[9:], labels[9:])]


def test_ladder_has_every_stage_on_all_examples(prepared, batches, small_net, tmp_path):
    artifact = qat.export(qat.convert(prepared), tmp_path / "model.onnx")
    report = qat.verify(prepared, artifact, batches, float_model=small_net)
    names = [s.name for s in report.stages]
    assert names[:4] == ["float", "prepared, fake-quant off", "fake-quant", "integer reference (torch)"]
    assert names[4].endswith("optimizations off")
    assert names[5].endswith("optimizations on")
    assert report.examples == 16
    assert report.passed
    assert report.stage("float").top1 == 100.0  # its own classes are the labels
    assert report.stage("prepared").max_steps == report.stage("float").max_steps  # untrained: the same model
    assert report.stage("fake-quant").max_steps == 0.0
    assert report.step == pytest.approx(float(prepared.fc.output_quantizer.scale))


def test_labels_are_not_needed(prepared, images, tmp_path):
    artifact = qat.export(qat.convert(prepared), tmp_path / "model.onnx")
    report = qat.verify(prepared, artifact, [images])
    assert {s.top1 for s in report.stages} == {None}


def test_mode_and_switches_are_as_before(prepared, images, tmp_path):
    artifact = qat.export(qat.convert(prepared), tmp_path / "model.onnx")
    prepared.train()
    qat.fake_quant(prepared, enabled=False)
    before = {k: v.clone() for k, v in prepared.state_dict().items()}
    qat.verify(prepared, artifact, [images])
    assert prepared.training
    assert not any(q.enabled for q in qat.quantizers(prepared).values())
    for name, value in prepared.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, msg=name)


def test_planted_fault_is_found_in_the_layer_that_has_it(prepared, batches, tmp_path):
    artifact = qat.export(qat.convert(prepared), tmp_path / "model.onnx")
    with torch.no_grad():
        prepared.depthwise_norm.bias += 1.0  # the artefact does not know of this
    report = qat.verify(prepared, artifact, batches, strict=False, tolerance=qat.Tolerance(agreement=100.0, top1=0.0))
    departure = first_departure(compare_layers(prepared, artifact, Inputs.of(batches[0])))
    assert departure.startswith("depthwise_norm (")
    if not report.passed:
        assert report.departure.startswith("depthwise_norm (")


def test_another_models_artifact_does_not_pass(prepared, batches, tmp_path):
    artifact = qat.export(qat.convert(prepared), tmp_path / "model.onnx")
    with torch.no_grad():
        prepared.fc.weight.neg_()
    with pytest.raises(ParityError, match=r"departs from the trained model.*agreement.*First layer that departs: fc"):
        qat.verify(prepared, artifact, batches)


def test_no_batch(prepared, tmp_path):
    artifact = qat.export(qat.convert(prepared), tmp_path / "model.onnx")
    with pytest.raises(DataError, match="verification saw no batch"):
        qat.verify(prepared, artifact, [])


def test_a_path_is_no_artifact(prepared, batches):
    with pytest.raises(ConfigError, match=r"need the Artifact that qat\.export returns.*, got 'model\.onnx'"):
        qat.verify(prepared, "model.onnx", batches)


def test_float_operators_where_integers_alone_are_allowed(small_net, images, tmp_path):
    alone = qat.Tolerance(in_float=0)
    for exclude, file in ((["fc"], "model.onnx"), ([], "model.pt2")):
        prepared = qat.prepare(small_net, images[:2], exclude=exclude)
        qat.calibrate(prepared, [images])
        artifact = qat.export(qat.convert(prepared), tmp_path / file)
        said = {
            "model.onnx": r"onnxruntime .* executes \d+ operators? in float, need at most 0: .*Gemm",
            "model.pt2": "torch .* does not show what it executes in float, need at most 0",
        }[file]
        with pytest.raises(ParityError, match=said):
            qat.verify(prepared, artifact, [images], tolerance=alone)
        assert qat.verify(prepared, artifact, [images]).coverage is None
    artifact = qat.export(qat.convert(prepared), tmp_path / "model.onnx")
    assert qat.verify(prepared, artifact, [images], tolerance=alone).coverage.in_float == ()


def test_not_a_number_in_the_input(prepared, images, tmp_path):
    artifact = qat.export(qat.convert(prepared), tmp_path / "model.onnx")
    images[3] = float("nan")
    with pytest.raises(NumericsError, match="NaN or Inf in the output of stage"):
        qat.verify(prepared, artifact, [images])


def test_pt2_passes_too(prepared, batches, tmp_path):
    report = qat.verify(prepared, qat.export(qat.convert(prepared), tmp_path / "model.pt2"), batches)
    assert report.stages[-1].name.startswith("torch ")
    assert report.stages[-1].max_steps <= 1.5


@pytest.mark.parametrize(
    ("target", "file", "vnni", "hint"),
    [
        ("onnxruntime_vnni", "model.onnx", False, "use a target whose weights have 7 bits"),
        ("onnxruntime_vnni", "model.onnx", True, "layerwise=True"),
        ("onnxruntime", "model.onnx", False, "layerwise=True"),
        ("torch", "model.pt2", False, "layerwise=True"),
    ],
)
def test_the_hint_is_of_this_machine_and_target(small_net, images, tmp_path, monkeypatch, target, file, vnni, hint):
    old = {"name": "Old CPU", "isa": ["avx2"], "vnni": vnni, "arch": "x86_64", "threads": 1}
    monkeypatch.setattr(machine, "cpu", lambda: old)
    prepared = qat.prepare(small_net, images[:2], target=target)
    qat.calibrate(prepared, [images])
    artifact = qat.export(qat.convert(prepared), tmp_path / file)
    with pytest.raises(ParityError, match=hint):
        qat.verify(prepared, artifact, [images], tolerance=qat.Tolerance(agreement=101))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"agreement": None}, "need agreement to be a number >= 0, got None; agreement=0 lets all pass"),
        ({"agreement": "high"}, "need agreement to be a number >= 0, got 'high'"),
        ({"top1": -1.0}, "need top1 to be a number >= 0, got -1.0; top1=100 lets all pass"),
        ({"in_float": -1}, "need in_float to be a count of operators, or null, got -1"),
    ],
)
def test_tolerances_that_are_none(given, message):
    with pytest.raises(ConfigError, match=message):
        qat.Tolerance(**given)
