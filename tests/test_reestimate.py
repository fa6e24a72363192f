from __future__ import annotations

import pytest
import torch
from torch import nn

import qat
from qat.errors import CalibrationError, PlacementError
from qat.placement.prepared import batchnorms
from qat.reestimate import reestimate_batchnorm

ROUNDING = 1e-5  # relative: float32 sums of a few hundred values


@pytest.fixture(params=["w8a8", "w8a8_per_tensor", "w4a4_lsq"])
def prepared(request, small_net, images) -> qat.PreparedModel:
    model = qat.prepare(small_net, images, request.param)
    qat.calibrate(model, [images])
    return model


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


@pytest.mark.parametrize("training", [True, False])
def test_statistics_are_the_averages_over_the_batches(prepared, training):
    prepared.train(training)
    seen: dict[nn.Module, list[torch.Tensor]] = {norm: [] for norm in batchnorms(prepared)}
    handles = [n.register_forward_pre_hook(lambda m, args: seen[m].append(args[0].clone())) for n in seen]
    before = state(prepared)
    batches = torch.rand(3, 8, 3, 8, 8) * 2 - 1
    assert reestimate_batchnorm(prepared, batches) == 3
    for handle in handles:
        handle.remove()
    for norm, inputs in seen.items():
        assert len(inputs) == 3
        mean = torch.stack([x.double().mean((0, 2, 3)) for x in inputs]).mean(0)
        var = torch.stack([x.double().var((0, 2, 3)) for x in inputs]).mean(0)
        torch.testing.assert_close(norm.running_mean.double(), mean, rtol=ROUNDING, atol=ROUNDING)
        torch.testing.assert_close(norm.running_var.double(), var, rtol=ROUNDING, atol=ROUNDING)
        assert norm.momentum == 0.01
    changed = {k for k, v in prepared.state_dict().items() if not torch.equal(v, before[k])}
    assert changed
    assert all(k.rpartition(".")[2] in ("running_mean", "running_var") for k in changed)
    assert prepared.training is training
    assert {m.training for m in prepared.modules()} == {training}


def test_switches_come_back(prepared, images):
    qat.fake_quant(prepared, enabled=False)
    qat.freeze_batchnorm(prepared.train())
    reestimate_batchnorm(prepared, [images, images], max_batches=1)
    assert not any(q.enabled for q in qat.placement.quantizers(prepared).values())
    assert not any(norm.training for norm in batchnorms(prepared))


@pytest.mark.parametrize("recipe", ["w8a8", "w4a4_lsq"])
def test_it_mends_statistics_that_are_off(small_net, images, recipe):
    prepared = qat.prepare(small_net, images, recipe)
    qat.calibrate(prepared, [images])
    reestimate_batchnorm(prepared, [images])
    expected = prepared.eval()(images)
    for norm in batchnorms(prepared):
        norm.running_mean.add_(3.0)
        norm.running_var.mul_(5.0)
    assert not torch.equal(prepared(images), expected)
    reestimate_batchnorm(prepared, [images])
    assert torch.equal(prepared(images), expected)


def test_no_batch_and_no_quantizer(prepared):
    with pytest.raises(CalibrationError, match="re-estimation saw no batch; pass at least one"):
        reestimate_batchnorm(prepared, [])
    with pytest.raises(PlacementError, match=r"no quantizer in Linear; call qat\.prepare first"):
        reestimate_batchnorm(nn.Linear(2, 2), [])
