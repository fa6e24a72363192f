from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qat.functional.folding import fold_bias, fold_factor
from qat.functional.ste import IDENTITY, RELU, RELU6
from qat.layers import FakeQuantBatchNorm1d, FakeQuantBatchNorm2d, FakeQuantBatchNorm3d
from qat.observers import MinMax
from qat.quantizers import LSQ
from qat.spec import IntSpec

ACTIVATIONS = {IDENTITY: lambda x: x, RELU: F.relu, RELU6: F.relu6}
SHAPES = {FakeQuantBatchNorm1d: (6, 4, 5), FakeQuantBatchNorm2d: (6, 4, 3, 3), FakeQuantBatchNorm3d: (6, 4, 2, 3, 2)}
# Our BatchNorm may differ from torch's in its last bits, so a value near a tie may land on the next step
ONE_STEP = 1.001
SHARE_OF_FLIPS = 0.005
STEPS = 4  # optimizer-free forward passes; statistics and ranges move in each


def twins(cls, norm, activation, quantizer):
    """The fused layer, and the same three parts as a chain."""
    chain = copy.deepcopy(norm), ACTIVATIONS[activation], copy.deepcopy(quantizer)
    return cls.from_float(norm, activation, quantizer), chain


def norm_of(cls, **settings):
    norm = cls.__mro__[2](4, **settings)
    if norm.affine:
        with torch.no_grad():
            norm.weight.copy_(torch.tensor([1.0, -1.5, 0.0, 2.0]))
            norm.bias.normal_()
    return norm


@pytest.mark.parametrize("cls", SHAPES)
def test_the_float_class_is_where_the_name_says(cls):
    assert cls.__mro__[2].__name__ == cls.__name__.removeprefix("FakeQuant")


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("cls", SHAPES)
@pytest.mark.parametrize(
    "settings",
    [{}, {"eps": 1e-3, "momentum": 0.01}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}],
    ids=str,
)
def test_switched_off_it_is_batchnorm_and_activation(cls, settings, activation, activation_quantizer):
    norm = norm_of(cls, **settings)
    fake, (reference, function, _) = twins(cls, norm, activation, activation_quantizer())
    fake.output_quantizer.enabled = False
    for mode in (True, True, False, True):
        x = torch.randn(SHAPES[cls])
        assert torch.equal(fake.train(mode)(x), function(reference.train(mode)(x)))
    assert all(torch.equal(fake.state_dict()[k], v) for k, v in reference.state_dict().items())


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("cls", SHAPES)
@pytest.mark.parametrize(
    "settings", [{}, {"eps": 1e-3, "momentum": 0.01}, {"momentum": None}, {"momentum": 0.0}, {"affine": False}], ids=str
)
def test_switched_on_it_is_the_chain_of_its_parts(cls, settings, activation, activation_quantizer):
    norm = norm_of(cls, **settings)
    fake, (reference, function, quantizer) = twins(cls, norm, activation, activation_quantizer())
    for mode in [True] * STEPS + [False]:
        for module in (fake, reference, quantizer):
            module.train(mode)
        x = torch.randn(SHAPES[cls]) * 2 + 1
        y, expected = fake(x), quantizer(function(reference(x)))
        # statistics are BatchNorm's own, bit for bit: they do not depend on the quantizer
        assert all(torch.equal(fake.state_dict()[k], v) for k, v in reference.state_dict().items())
        scale = quantizer.scale
        torch.testing.assert_close(fake.output_quantizer.scale, scale, atol=0, rtol=1e-6)  # range of float32 values
        difference = (y - expected).abs()
        assert difference.max() <= scale * ONE_STEP
        assert (difference > scale / 2).float().mean() <= SHARE_OF_FLIPS
    assert fake.num_batches_tracked == STEPS


def test_statistics_frozen_in_training_mode_normalise_with_the_running_ones(activation_quantizer):
    """`freeze_batchnorm` puts the norm, not its quantizer, into evaluation mode."""
    fake, (reference, function, quantizer) = twins(
        FakeQuantBatchNorm2d, norm_of(FakeQuantBatchNorm2d), RELU, activation_quantizer()
    )
    for module in (fake, reference):
        module.running_mean.normal_()
        module.training = False
    reference.load_state_dict(fake.state_dict(), strict=False)
    before = fake.running_mean.clone()
    x = torch.randn(6, 4, 3, 3)
    y, expected = fake(x), quantizer(function(reference(x)))
    assert torch.equal(fake.running_mean, before)
    assert fake.output_quantizer.calibrated  # its range still learns
    assert ((y - expected).abs() <= quantizer.scale * ONE_STEP).all()


def test_ranges_never_move_in_evaluation_mode(activation_quantizer):
    fake = FakeQuantBatchNorm2d.from_float(nn.BatchNorm2d(4), RELU, activation_quantizer())
    fake(torch.randn(6, 4, 3, 3))
    before = {k: v.clone() for k, v in fake.state_dict().items()}
    fake.eval()(torch.randn(6, 4, 3, 3) * 50)
    assert all(torch.equal(v, before[k]) for k, v in fake.state_dict().items())


def test_parameters_and_names_are_the_float_layers(activation_quantizer):
    norm = nn.BatchNorm2d(4, eps=1e-3, momentum=0.01)
    fake = FakeQuantBatchNorm2d.from_float(norm, RELU, activation_quantizer())
    assert fake.weight is norm.weight
    assert fake.running_var is norm.running_var
    assert (fake.eps, fake.momentum) == (1e-3, 0.01)
    assert isinstance(fake, nn.BatchNorm2d)
    extra = set(fake.state_dict()) - set(norm.state_dict())
    assert set(norm.state_dict()) <= set(fake.state_dict())
    assert all(key.startswith("output_quantizer.") for key in extra)


def test_float32_inside_autocast_and_the_dtype_comes_back(activation_quantizer):
    x = torch.randn(6, 4, 3, 3).bfloat16()
    fake, other = (FakeQuantBatchNorm2d.from_float(nn.BatchNorm2d(4), RELU, activation_quantizer()) for _ in range(2))
    expected = other(x.float())
    with torch.autocast("cpu", torch.bfloat16):
        y = fake(x)
    assert y.dtype is torch.bfloat16
    assert torch.equal(y, expected.bfloat16())
    assert torch.equal(fake.running_var, other.running_var)


def test_the_bias_is_the_one_that_folding_deploys(activation_quantizer):
    """(b - mean) f + beta is a whole number of s_x |f| s_w; only where running statistics normalise."""
    fake = FakeQuantBatchNorm2d.from_float(randomized(nn.BatchNorm2d(4)), RELU, activation_quantizer())
    input_scale, weight_scale, layer_bias = torch.tensor(0.05), torch.rand(4) * 0.02 + 0.001, torch.randn(4)
    arguments = (input_scale, weight_scale, layer_bias)
    assert fake.train().rounded_bias(*arguments) is fake.bias
    bias = fake.eval().rounded_bias(*arguments).detach()
    factor = fold_factor(fake.weight, fake.running_var, fake.eps).detach()
    steps = fold_bias(layer_bias, fake.running_mean, bias, factor).double() / (
        input_scale * weight_scale * factor.abs()
    )
    assert (steps - steps.round()).abs().max() < 2e-2  # thousands of steps in float32
    assert ((bias - fake.bias).abs() <= 0.51 * input_scale * weight_scale * factor.abs()).all()


def randomized(norm):
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, -1.5, 0.3, 2.0]))
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
    return norm


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("cls", SHAPES)
def test_a_quantizer_that_trains_its_range_is_called_as_a_module(cls, activation):
    """The fused function knows no gradient for a scale, so it must not take over."""
    quantizer = LSQ(IntSpec(bits=4, signed=False, scheme="affine"), MinMax)
    fake, (reference, function, own) = twins(cls, norm_of(cls), activation, quantizer)
    for _ in range(STEPS):
        x = torch.randn(SHAPES[cls]) * 2 + 1
        y, expected = fake(x), own(function(reference(x)))
        assert torch.equal(y, expected)
        grad = torch.randn_like(y)
        y.backward(grad)
        expected.backward(grad)
        assert torch.equal(fake.output_quantizer.step.grad, own.step.grad)
        assert torch.equal(fake.weight.grad, reference.weight.grad)
    assert own.step.grad != 0


def test_there_too_the_bias_is_the_one_that_folding_deploys():
    quantizer = LSQ(IntSpec(bits=4, signed=False, scheme="affine"), MinMax)
    fake = FakeQuantBatchNorm2d.from_float(randomized(nn.BatchNorm2d(4)), RELU, quantizer)
    x, scales = torch.randn(6, 4, 3, 3), (torch.tensor(0.5), torch.rand(4) * 0.2 + 0.1, torch.randn(4))
    plain = copy.deepcopy(fake)
    assert torch.equal(fake.train()(x, *scales), plain.train()(x))  # a batch's own statistics are never folded
    bias = fake.eval().rounded_bias(*scales)
    normalized = F.batch_norm(x, fake.running_mean, fake.running_var, fake.weight, bias, False, 0.0, fake.eps)
    assert torch.equal(fake(x, *scales), fake.output_quantizer(normalized, RELU))
    assert not torch.equal(normalized, plain.eval()._normalized(x, None, None, None))
    fake.output_quantizer.enabled = False
    assert torch.equal(
        fake(x, *scales),
        F.relu(F.batch_norm(x, fake.running_mean, fake.running_var, fake.weight, fake.bias, False, 0.0, fake.eps)),
    )
