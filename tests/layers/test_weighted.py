from __future__ import annotations

import torch
from torch import nn

from qat.functional.folding import fold_factor
from qat.layers import FakeQuantConv2d

EPS = 1e-3
FLOAT = 1e-6  # relative: one multiplication and one division in float32


def layer_and_norm():
    """A convolution with a BatchNorm whose gammas are ordinary, mirrored and dead."""
    norm = nn.BatchNorm2d(3, eps=EPS).eval()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, -3.0, 0.0]))
        norm.running_var.copy_(torch.tensor([0.2, 4.0, 1.0]))
        norm.running_mean.normal_()
        norm.bias.normal_()
    return nn.Conv2d(2, 3, 3, bias=False), norm


def test_one_scale_quantizes_the_folded_weight_and_divides_by_the_factor(weight_quantizer):
    layer, norm = layer_and_norm()
    fake = FakeQuantConv2d.from_float(layer, weight_quantizer(), norm_eps=EPS)
    weight = fake.quantized_weight(norm.weight, norm.running_var)
    factor = fold_factor(norm.weight, norm.running_var, EPS).detach().view(-1, 1, 1, 1)
    quantizer = fake.weight_quantizer
    stored = quantizer.integers(layer.weight * factor).float() * quantizer.scale
    alive = torch.tensor([0, 1])
    torch.testing.assert_close((weight * factor)[alive], stored[alive], atol=0, rtol=FLOAT)
    assert torch.equal(quantizer.observer.high, (layer.weight * factor).detach().max())


def test_a_dead_channel_divides_by_no_zero(weight_quantizer):
    layer, norm = layer_and_norm()
    fake = FakeQuantConv2d.from_float(layer, weight_quantizer(), norm_eps=EPS)
    weight = fake.quantized_weight(norm.weight, norm.running_var)
    assert torch.equal(weight[2], torch.zeros_like(weight[2]))
    weight.sum().backward()
    assert layer.weight.grad.isfinite().all()


def test_a_layer_without_batchnorm_quantizes_its_weight_as_it_is(weight_quantizer):
    layer, _ = layer_and_norm()
    fake = FakeQuantConv2d.from_float(layer, weight_quantizer())
    q = fake.weight_quantizer
    weight = fake.quantized_weight()
    assert torch.equal(weight, q.integers(layer.weight).float() * q.scale)


def test_the_factor_gets_no_gradient_through_the_weight(weight_quantizer):
    """BatchNorm's gamma learns from BatchNorm alone; the factor only says where the grid lies."""
    layer, norm = layer_and_norm()
    fake = FakeQuantConv2d.from_float(layer, weight_quantizer(), norm_eps=EPS)
    fake(torch.randn(1, 2, 5, 5), norm.weight, norm.running_var).sum().backward()
    assert norm.weight.grad is None


def test_switched_off_it_is_the_float_weight_with_one_scale_too(weight_quantizer):
    layer, norm = layer_and_norm()
    fake = FakeQuantConv2d.from_float(layer, weight_quantizer(), norm_eps=EPS)
    fake.weight_quantizer.enabled = False
    assert torch.equal(fake.quantized_weight(norm.weight, norm.running_var), layer.weight)
    assert fake.weight_quantizer.calibrated  # calibration runs with fake quantization off


def test_the_bias_is_an_integer_at_the_scale_of_the_products(weight_quantizer):
    fake = FakeQuantConv2d.from_float(nn.Conv2d(2, 3, 3), weight_quantizer(3))
    fake.quantized_weight()
    input_scale = torch.tensor(0.05)
    steps = fake.integer_bias(input_scale).double() / (input_scale.double() * fake.weight_quantizer.scale.double())
    assert (steps - steps.round()).abs().max() < 1e-3  # whole steps, of which float32 keeps 24 bits
    assert fake.integer_bias(None) is fake.bias
    fake.weight_quantizer.enabled = False
    assert fake.integer_bias(input_scale) is fake.bias
