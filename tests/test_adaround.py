from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import qat
from qat.adaround import adaround
from qat.errors import CalibrationError, ConfigError, PlacementError

BITS = 3


def recipe(granularity="per_channel"):
    weight = {"*": {"weight": {"bits": BITS, "granularity": granularity}}}
    return {**qat.presets.load_preset("quant", "w8a8"), "override": weight}


def calibrated(model, x, chosen=None) -> qat.PreparedModel:
    prepared = qat.prepare(model, x, chosen or recipe())
    qat.calibrate(prepared, [x])
    return prepared.eval()


@pytest.mark.parametrize("seed", [2, 4])  # where rounding to the nearest is the 21st and the 8th best
def test_it_finds_what_a_search_over_all_roundings_finds(seed):
    """Eight weights, 2^8 ways to round them."""
    torch.manual_seed(seed)
    x = torch.randn(256, 8) @ torch.randn(8, 8)  # correlated inputs: the nearest integers are not the best ones
    linear = nn.Linear(8, 1)
    prepared = calibrated(nn.Sequential(linear).eval(), x)
    layer = prepared.get_submodule("0")
    weight, scale = layer.weight.detach().clone(), layer.weight_quantizer.scale.detach()
    x_quantized = prepared.input_quantizer(x).detach()
    wanted = x @ weight.T

    def error(steps):
        return float((x_quantized @ (steps * scale).T - wanted).square().mean())

    floor = (weight / scale).floor()
    all_errors = [
        error((floor + torch.tensor([ups], dtype=torch.float32)).clamp(-3, 3))
        for ups in itertools.product((0, 1), repeat=8)
    ]
    share = adaround(prepared, [x], iterations=600, batch_size=64)
    found = error(layer.weight_quantizer.integers(layer.weight).float())
    assert share["0"] > 0
    assert found == pytest.approx(min(all_errors))
    assert found < error((weight / scale).round()) / 2


@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
def test_weights_end_on_floor_or_ceiling_and_outputs_come_nearer(small_net, images, granularity):
    prepared = calibrated(small_net, images, recipe(granularity))
    wanted = small_net(images).detach()
    with torch.no_grad():
        before = (prepared(images) - wanted).square().mean()
    weight, quantizer = prepared.fc.weight.detach().clone(), prepared.fc.weight_quantizer
    scale = quantizer.scale.view(-1, 1) if granularity == "per_channel" else quantizer.scale
    adaround(prepared, [images], iterations=150, batch_size=16)
    with torch.no_grad():
        after = (prepared(images) - wanted).square().mean()
    assert after < before
    q = quantizer.integers(prepared.fc.weight)
    steps = weight / scale
    assert ((q == steps.floor().clamp(-3, 3)) | (q == steps.ceil().clamp(-3, 3))).all()
    torch.testing.assert_close(prepared.fc.weight.detach(), q * scale)
    step = float(prepared.fc.output_quantizer.scale)
    with torch.no_grad():
        assert (qat.convert(prepared)(images) - prepared(images)).abs().max() < 1.5 * step


def test_mode_and_switches_come_back_and_nothing_but_weights_changes(small_net, images):
    prepared = calibrated(small_net, images).train()
    qat.fake_quant(prepared, enabled=False)
    before = {k: v.clone() for k, v in prepared.state_dict().items()}
    adaround(prepared, [images, images], max_batches=1, iterations=2)
    changed = {k for k, v in prepared.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"stem.weight", "depthwise.weight", "point.weight", "fc.weight"}
    assert prepared.training
    assert not any(q.enabled for q in qat.placement.quantizers(prepared).values())


def test_the_same_seed_gives_the_same_weights(small_net, images):
    results = []
    for _ in range(2):
        prepared = calibrated(small_net, images)
        adaround(prepared, [images], iterations=5, batch_size=4)
        results.append(prepared.stem.weight.detach().clone())
    assert torch.equal(*results)


def test_what_it_refuses(small_net, images):
    prepared = calibrated(small_net, images)
    with pytest.raises(CalibrationError, match="adaround saw no batch"):
        adaround(prepared, [])
    with pytest.raises(PlacementError, match=r"needs a model from qat\.prepare, got SmallNet"):
        adaround(small_net, [images])
    with pytest.raises(CalibrationError, match="never observed"):
        adaround(qat.prepare(small_net, images), [images])
    with pytest.raises(ConfigError, match=r"stem\.weight_quantizer rounds a tanh of its weight"):
        adaround(calibrated(small_net, images, "w4a4_dorefa"), [images])


def test_without_a_graph(small_net, images):
    """It would return having done nothing."""
    model = qat.prepare(small_net, images, "w8a8", placement="modules")
    qat.calibrate(model, [images])
    with pytest.raises(
        PlacementError, match="adaround goes along the graph of SmallNet, and placement=modules has none"
    ):
        adaround(model, [images])
