from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qat.functional.epilogue import Norm, Quant, norm_act_quant
from qat.functional.ste import IDENTITY, RELU, RELU6

ACTIVATIONS = {"identity": (IDENTITY, lambda x: x), "relu": (RELU, F.relu), "relu6": (RELU6, F.relu6)}
# BatchNorm's output may differ from torch's in its last bits (another order of the same operations). That moves a
# value to the next step only this near a tie, in steps, and a gradient across the mask's edge only this near it.
NEAR_TIE = 1e-3
STATISTICS = 1e-6  # relative to float64: rows are summed in float32, and a difference of squares costs up to 4 bits
GRADIENT = 2e-5  # relative to the largest gradient: float32 sums over 4 * 6 * 6 values, in another order


class Case:
    """A BatchNorm with a channel of each kind, an input for it, and a quantizer that clips on both sides."""

    def __init__(self, *, training: bool, eps: float, momentum: float) -> None:
        self.norm = nn.BatchNorm2d(5, eps=eps, momentum=momentum).train(training)
        with torch.no_grad():
            self.norm.weight.copy_(torch.tensor([1.0, -1.5, 0.0, 2.0, 1e-3]))  # ordinary, mirrored, dead, large, tiny
            self.norm.bias.copy_(torch.tensor([0.1, -0.2, 0.7, 0.05, 3.0]))
            self.norm.running_mean.normal_()
            self.norm.running_var.uniform_(0.2, 2.0)
        self.x = torch.randn(4, 5, 6, 6) * 2 + 0.5
        self.scale, self.zero_point = torch.tensor(0.037), torch.tensor(90, dtype=torch.int32)
        self.grad = torch.randn(4, 5, 6, 6)

    def arguments(self) -> tuple[Norm, Quant]:
        norm = self.norm
        stats = norm.running_mean.clone(), norm.running_var.clone()
        weight, bias = (p.detach().clone().requires_grad_() for p in (norm.weight, norm.bias))
        return (
            Norm(weight, bias, *stats, norm.momentum, norm.eps, norm.training),
            Quant(self.scale, self.zero_point, 0, 255),
        )


@pytest.fixture(params=[(False, 1e-5, 0.1), (True, 1e-5, 0.1), (True, 1e-3, 0.01)], ids=["eval", "train", "train_eps"])
def case(request: pytest.FixtureRequest) -> Case:
    training, eps, momentum = request.param
    return Case(training=training, eps=eps, momentum=momentum)


def near_a_step_boundary(n: Tensor, scale: Tensor) -> Tensor:
    steps = n.double() / scale.double()
    return (steps - steps.floor() - 0.5).abs() < NEAR_TIE


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_equals_batchnorm_activation_and_fake_quantize(case, name):
    activation, function = ACTIVATIONS[name]
    norm, quant = case.arguments()
    x = case.x.clone().requires_grad_()
    y = norm_act_quant(x, norm, activation, quant)

    reference = case.x.clone().requires_grad_()
    n = case.norm(reference)
    expected = torch.fake_quantize_per_tensor_affine(function(n), case.scale, case.zero_point, 0, 255)

    # a gradient at every value that is clear of the boundaries, in both
    clear = ~near_a_step_boundary(n.detach(), case.scale)
    assert clear.float().mean() > 0.98
    assert torch.equal(y[clear], expected[clear])
    assert ((y - expected).abs() <= case.scale * 1.001).all()  # one step, for the rest

    y.backward(case.grad * clear)
    expected.backward(case.grad * clear)
    pairs = {"x": (x, reference), "weight": (norm.weight, case.norm.weight), "bias": (norm.bias, case.norm.bias)}
    for what, (ours, theirs) in pairs.items():
        atol = GRADIENT * float(theirs.grad.abs().max())
        torch.testing.assert_close(ours.grad, theirs.grad, atol=atol, rtol=0, msg=lambda m, w=what: f"{w}: {m}")


@pytest.mark.parametrize("shift", [0.0, 2.0, 4.0, 30.0])
def test_running_statistics_are_batchnorms(case, shift):
    """Also where the mean is so large that a difference of squares would lose it."""
    norm, quant = case.arguments()
    x = case.x + shift
    norm_act_quant(x, norm, RELU, quant)
    exact = copy.deepcopy(case.norm).double()
    exact(x.double())
    deviation = exact.running_var.sqrt()
    assert ((norm.running_mean - exact.running_mean).abs() <= STATISTICS * (deviation + exact.running_mean.abs())).all()
    assert ((norm.running_var - exact.running_var).abs() <= STATISTICS * exact.running_var).all()
    if not case.norm.training:
        assert torch.equal(norm.running_mean, case.norm.running_mean)
        assert torch.equal(norm.running_var, case.norm.running_var)


@pytest.mark.parametrize("make", [lambda x: x[:, :, :5, :3], lambda x: x.contiguous(memory_format=torch.channels_last)])
def test_running_statistics_are_batchnorms_bit_for_bit_where_its_own_loop_runs(case, make):
    """On short rows, and on other memory formats."""
    norm, quant = case.arguments()
    x = make(case.x)
    norm_act_quant(x, norm, RELU, quant)
    case.norm(x)
    assert torch.equal(norm.running_mean, case.norm.running_mean)
    assert torch.equal(norm.running_var, case.norm.running_var)


def test_a_dead_channel_is_its_bias_on_the_grid(case):
    norm, quant = case.arguments()
    y = norm_act_quant(case.x, norm, IDENTITY, quant)
    assert torch.equal(y[:, 2], torch.full_like(y[:, 2], 19 * 0.037))  # beta 0.7 is 18.9 steps


def test_the_input_is_not_written_to(case):
    before = case.x.clone()
    norm, quant = case.arguments()
    norm_act_quant(case.x, norm, RELU6, quant)
    assert torch.equal(case.x, before)


def test_only_the_input_and_statistics_are_kept_for_backward(case):
    """What a plain BatchNorm keeps. A chain of modules keeps BatchNorm's output and a mask beside them."""
    norm, quant = case.arguments()
    x = case.x.clone().requires_grad_()
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        norm_act_quant(x, norm, RELU, quant)
    large = [t for t in saved if t.numel() > 5]
    assert {t.data_ptr() for t in large} == {x.data_ptr()}
    assert sum(t.numel() for t in saved) - x.numel() * len(large) <= 6 * 5  # [C] vectors: gamma, beta, statistics


def test_the_observer_sees_batchnorms_output_before_the_scale_is_read(case):
    norm, quant = case.arguments()
    seen: list[Tensor] = []

    def observe(n: Tensor) -> None:
        seen.append(n.clone())
        quant.scale.copy_(torch.tensor(0.05))

    y = norm_act_quant(case.x, norm, IDENTITY, quant, observe)
    torch.testing.assert_close(seen[0], case.norm(case.x).detach(), atol=1e-5, rtol=1e-5)  # float32, a few roundings
    steps = y / 0.05
    assert (steps - steps.round()).abs().max() < 1e-4  # on the grid of the new scale


def test_no_gradient_where_none_is_asked_for(case):
    norm, quant = case.arguments()
    norm.bias.requires_grad_(False)
    x = case.x.clone()
    norm_act_quant(x, norm, RELU, quant).sum().backward()
    assert x.grad is None
    assert norm.bias.grad is None
    assert norm.weight.grad.abs().sum() > 0
