from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import qat
from qat.bias_correction import correct_biases, weighted_in_order
from qat.errors import CalibrationError, PlacementError

ROUNDING = 1e-3  # the bias is an int32: half a step of s_x * s_w, and float32 means of a few thousand values


@pytest.fixture
def prepared(small_net, images) -> qat.PreparedModel:
    model = qat.prepare(small_net, images, "w4a8")
    qat.calibrate(model, [images])
    return model.eval()


def means(model, images, *, quantized: bool) -> dict[str, torch.Tensor]:
    """Mean output of each convolution and linear layer, behind its BatchNorm."""
    qat.fake_quant(model, enabled=quantized)
    found, handles = {}, []
    for layer, (name, norm) in weighted_in_order(model).items():

        def take(module, args, output, name=name, norm=norm):
            y = (
                output
                if norm is None
                else nn.functional.batch_norm(
                    output, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps
                )
            )
            found[name] = y.mean([d for d in range(y.ndim) if d != 1])

        handles.append(layer.register_forward_hook(take))
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    qat.fake_quant(model, enabled=True)
    return found


def test_every_layer_has_the_mean_of_the_float_model(prepared, images):
    float_means = means(copy.deepcopy(prepared), images, quantized=False)
    before = means(prepared, images, quantized=True)
    assert correct_biases(prepared, [images]) == ()
    after = means(prepared, images, quantized=True)
    for name, wanted in float_means.items():
        assert (after[name] - wanted).abs().max() <= ROUNDING
    assert any((before[n] - w).abs().max() > 10 * (after[n] - w).abs().max() for n, w in float_means.items())


def test_only_means_and_biases_change(prepared, images):
    before = {k: v.clone() for k, v in prepared.state_dict().items()}
    prepared.train()
    correct_biases(prepared, [images])
    changed = {k for k, v in prepared.state_dict().items() if not torch.equal(v, before[k])}
    norms = {"stem_norm.running_mean", "depthwise_norm.running_mean", "point_norm.running_mean"}
    assert changed == norms | {"fc.bias"}
    assert prepared.training


def test_a_layer_without_bias_is_named(images):
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Conv2d(4, 4, 3)).eval()
    prepared = qat.prepare(model, images, "w4a8")
    qat.calibrate(prepared, [images])
    assert correct_biases(prepared, [images]) == ("0",)


def test_what_it_refuses(prepared, small_net, images):
    with pytest.raises(CalibrationError, match="bias correction saw no batch"):
        correct_biases(prepared, [])
    with pytest.raises(PlacementError, match=r"needs a model from qat\.prepare, got SmallNet"):
        correct_biases(small_net, [images])
    with pytest.raises(CalibrationError, match="never observed"):
        correct_biases(qat.prepare(small_net, images), [images])


def test_without_a_graph(small_net, images):
    """It would return having done nothing."""
    model = qat.prepare(small_net, images, "w8a8", placement="modules")
    qat.calibrate(model, [images])
    with pytest.raises(
        PlacementError, match="bias correction goes along the graph of SmallNet, and placement=modules has none"
    ):
        correct_biases(model, [images])
