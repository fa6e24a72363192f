from __future__ import annotations

import pytest
import torch
from torch import nn

import qat
from qat.errors import PlacementError
from qat.placement.prepared import batchnorms


@pytest.fixture
def prepared(small_net, images) -> qat.PreparedModel:
    model = qat.prepare(small_net, images)
    qat.calibrate(model, [images])
    return model


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def changed(before: dict[str, torch.Tensor], model: nn.Module) -> set[str]:
    return {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}


def test_fake_quant_off_is_the_float_model_and_on_is_not(prepared, small_net, images):
    prepared.eval()
    expected = small_net(images)
    fake = prepared(images)
    assert not torch.equal(fake, expected)
    for _ in range(2):  # idempotent
        qat.fake_quant(prepared, enabled=False)
        assert torch.equal(prepared(images), expected)
    qat.fake_quant(prepared, enabled=True)
    assert torch.equal(prepared(images), fake)


def test_weights_alone(prepared, small_net, images):
    qat.fake_quant(prepared, enabled=True, activations=False)
    enabled = {name for name, q in qat.quantizers(prepared).items() if q.enabled}
    assert enabled == {f"{name}.weight_quantizer" for name in ("stem", "depthwise", "point", "fc")}
    with torch.no_grad():
        for name in ("stem", "depthwise", "point", "fc"):
            layer = prepared.get_submodule(name)
            small_net.get_submodule(name).weight.copy_(layer.weight_quantizer(layer.weight))
    # the float model with weights on their grid, but for biases, which are int32: half a step of 1e-5
    torch.testing.assert_close(prepared.eval()(images), small_net(images), rtol=0, atol=1e-4)
    qat.fake_quant(prepared, enabled=True)
    assert all(q.enabled for q in qat.quantizers(prepared).values())


def test_observers_move_ranges_in_training_mode_only(prepared, images):
    before = state(prepared)
    prepared.eval()(images * 10)
    assert changed(before, prepared) == set()

    qat.observers(prepared, enabled=False)
    prepared.train()(images * 10)
    assert not any("quantizer" in name for name in changed(before, prepared))

    qat.observers(prepared, enabled=True)
    prepared.train()(images * 10)
    assert {"x_quantizer.scale", "stem_norm.output_quantizer.observer.high"} <= changed(before, prepared)


def test_observed_ranges_freeze_alone_and_trained_ones_go_on(small_net, images):
    """What the schedule does: with LSQ, a frozen observer must not take the step sizes from the optimizer."""
    model = qat.prepare(small_net, images, recipe="w4a4_lsq")
    qat.calibrate(model, [images])
    model.train()
    for trained, moves in ((False, True), (True, False)):
        qat.observers(model, enabled=False, trained=trained)
        model.zero_grad()
        model(images).square().sum().backward()
        steps = [p for n, p in model.named_parameters() if n.endswith(".step")]
        assert steps
        assert all((p.grad is not None) is moves for p in steps)


def test_frozen_batchnorm_keeps_its_statistics_and_trains_its_weights(prepared, images):
    qat.freeze_batchnorm(prepared)
    before = state(prepared)
    for mode in (True, False, True):
        prepared.train(mode)  # what a Trainer calls around every validation
        prepared(images)
    assert not {n for n in changed(before, prepared) if "running" in n or "num_batches" in n}
    assert prepared.training
    assert all(q.training for q in qat.quantizers(prepared).values())  # ranges may go on learning
    prepared(images).sum().backward()
    assert all(norm.weight.grad is not None for norm in batchnorms(prepared))


def test_thawed_batchnorm_moves_again(prepared, images):
    prepared.train()
    qat.freeze_batchnorm(prepared)
    qat.freeze_batchnorm(prepared, frozen=False)
    before = state(prepared)
    prepared(images)
    assert "stem_norm.running_mean" in changed(before, prepared)


def test_thawing_in_evaluation_mode_leaves_it_there(prepared, images):
    prepared.eval()
    qat.freeze_batchnorm(prepared)
    qat.freeze_batchnorm(prepared, frozen=False)
    before = state(prepared)
    prepared(images)
    assert changed(before, prepared) == set()


def test_switches_reach_a_model_inside_another_module(prepared):
    outer = nn.ModuleDict({"model": prepared})
    qat.fake_quant(outer, enabled=False)
    qat.observers(outer, enabled=False)
    qat.freeze_batchnorm(outer)
    outer.train()
    assert not any(q.enabled or q.observing for q in qat.quantizers(prepared).values())
    assert not any(norm.training for norm in batchnorms(prepared))


def test_switches_are_not_in_the_checkpoint(prepared):
    keys = set(prepared.state_dict())
    qat.fake_quant(prepared, enabled=False)
    qat.freeze_batchnorm(prepared)
    assert set(prepared.state_dict()) == keys
    assert not any(word in key for key in keys for word in ("enabled", "observing", "frozen"))


@pytest.mark.parametrize(
    "switch",
    [
        lambda m: qat.fake_quant(m, enabled=False),
        lambda m: qat.observers(m, enabled=False),
        lambda m: qat.freeze_batchnorm(m),
    ],
    ids=["fake_quant", "observers", "freeze_batchnorm"],
)
def test_a_float_model_is_no_argument(switch, small_net):
    with pytest.raises(PlacementError, match=r"in SmallNet; call qat\.prepare first"):
        switch(small_net)
