"""The record of a small net, against what its tensors say directly."""

from __future__ import annotations

import pytest
import torch

import qat
from qat.functional.snr import EXACT
from qat.recorder import record_layers
from qat.recorder.noise import Noise
from qat.runtime.profile import profile


@pytest.fixture
def prepared(small_net, images):
    model = qat.prepare(small_net, (images,), "w8a8", "onnxruntime")
    qat.calibrate(model, [images])
    return model.eval()


def test_noise_is_ten_times_the_logarithm_of_the_ratio():
    noise = Noise()
    noise.add(torch.tensor([10.0]), torch.tensor([9.0]))
    assert noise.snr == pytest.approx(20.0)
    exact = Noise()
    exact.add(torch.ones(3), torch.ones(3))
    assert exact.snr == EXACT


@pytest.mark.parametrize("placement", ["graph", "modules"])
def test_weights_are_measured_against_their_own_grid(small_net, images, placement):
    model = qat.prepare(small_net, (images,), "w8a8", "onnxruntime", placement=placement)
    qat.calibrate(model, [images])
    layer = next(layer for layer in record_layers(model, [images]).layers if layer.name == "point")
    w = model.point.weight.detach()
    w, q = w.double(), model.point.weight_quantizer.eval()(w).detach().double()
    assert layer.weight is not None
    assert layer.weight.snr == pytest.approx(float(10 * torch.log10(w.square().sum() / (w - q).square().sum())))
    assert sum(layer.weight.counts) == w.numel()
    assert layer.weight.clipped == 0.0
    assert layer.activation is not None
    assert layer.snr is not None


@torch.no_grad()
def test_the_noise_of_the_last_operator_is_that_of_the_model(prepared, images):
    record = record_layers(prepared, [images[:8], images[8:]], examples=16)
    on = prepared(images).double()
    qat.fake_quant(prepared, enabled=False)
    off = prepared(images).double()
    assert record.examples == 16
    assert record.layers[-1].snr == pytest.approx(
        float(10 * torch.log10(off.square().sum() / (off - on).square().sum()))
    )


@torch.no_grad()
def test_a_range_that_is_too_small_clips_its_share(prepared, images):
    quantizer = prepared.point.weight_quantizer
    quantizer.scale.div_(4)
    spec = quantizer.spec
    integers = (prepared.point.weight / quantizer.scale.view(-1, 1, 1, 1)).round()
    outside = float(((integers < spec.qmin) | (integers > spec.qmax)).float().mean())
    layer = next(layer for layer in record_layers(prepared, [images]).layers if layer.name == "point")
    assert outside > 0
    assert layer.weight.clipped == pytest.approx(outside)


def test_every_operator_reads_what_the_graph_says(prepared, images):
    inputs = {layer.name: layer.inputs for layer in record_layers(prepared, [images]).layers}
    assert set(inputs) == {op.name for op in prepared.plan.ops}
    assert inputs["stem"] == ("x",)
    assert inputs["depthwise"] == ("stem",)
    assert set(inputs["add"]) == {"stem", "point"}


@torch.no_grad()
def test_the_model_is_as_before(prepared, images):
    before = prepared(images)
    prepared.train()
    record_layers(prepared, [images])
    assert prepared.training
    assert all(q.enabled for q in qat.quantizers(prepared).values())
    assert torch.equal(prepared.eval()(images), before)


@pytest.mark.runtime
def test_measured_time_finds_its_operator(prepared, images, tmp_path):
    artifact = qat.export(qat.convert(prepared), tmp_path / "int8.onnx")
    measured = profile(artifact, images[:1], repeats=3)
    record = record_layers(prepared, [images], profile=measured)
    times = {layer.name: layer.ms for layer in record.layers}
    assert all(times[name] > 0 for name in ("stem", "depthwise", "point", "fc", "add"))
    assert record.ms_other == measured.other
