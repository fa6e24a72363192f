"""What all quantizers with a trained range promise; formulas are in tests/functional."""

from __future__ import annotations

import copy

import pytest
import torch

from qat.errors import CalibrationError
from qat.functional.affine import dequantize
from qat.functional.ranges import qparams
from qat.functional.ste import IDENTITY, RELU, RELU6, Clamp
from qat.observers import MinMax
from qat.quantizers import LSQ, PACT, DoReFa, FakeQuantize, LSQPlus
from qat.quantizers.observed import clamp
from qat.quantizers.trained import positive
from qat.spec import IntSpec

UINT4 = IntSpec(bits=4, signed=False, scheme="affine")
WEIGHT = IntSpec(bits=4, narrow=True, granularity="per_channel")
WHOLE = IntSpec(bits=4, narrow=True)
CASES = [
    (LSQ, UINT4, None), (LSQ, WEIGHT, 3), (LSQ, WHOLE, None), (LSQ, IntSpec(bits=3, signed=False), None),
    (LSQPlus, UINT4, None), (LSQPlus, IntSpec(bits=4, scheme="affine", granularity="per_channel"), 3),
    (PACT, UINT4, None), (PACT, WEIGHT, 3),
    (DoReFa, WEIGHT, 3), (DoReFa, WHOLE, None),
]  # fmt: skip
IDS = [f"{cls.__name__}-{spec}" for cls, spec, _ in CASES]
ACTIVATIONS = [IDENTITY, RELU, RELU6, Clamp(0.0, 1.0)]


@pytest.fixture(params=CASES, ids=IDS)
def make(request):
    cls, spec, channels = request.param
    return lambda observer=MinMax: cls(spec, observer, channels=channels)


def calibrated(make, x=None, activation=IDENTITY) -> FakeQuantize:
    quantizer = make()
    quantizer.enabled = False
    quantizer(torch.randn(3, 40) * 2 if x is None else x, activation)
    quantizer.enabled = True
    return quantizer


def state(quantizer) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in quantizer.state_dict().items()}


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_output_is_what_the_stored_integers_mean(make, activation):
    """Forward = dequantize(integers): the very numbers that a runtime reads; inside and outside the range."""
    quantizer = calibrated(make, activation=activation)
    x = torch.randn(3, 40) * 4
    for mode in (True, False):
        y = quantizer.train(mode)(x, activation)
        q = quantizer.integers(clamp(x, activation))
        assert q.dtype is (torch.int8 if quantizer.spec.signed else torch.uint8)
        assert quantizer.spec.qmin <= q.min()
        assert q.max() <= quantizer.spec.qmax
        assert torch.equal(y, dequantize(q, quantizer.scale, quantizer.zero_point))


def test_zero_is_on_the_grid(make):
    quantizer = calibrated(make, torch.rand(3, 40) + 1)
    assert torch.equal(quantizer(torch.zeros(3, 40)), torch.zeros(3, 40))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_it_starts_from_the_observed_range(make, activation):
    quantizer = make()
    assert not quantizer.calibrated
    with pytest.raises(CalibrationError, match="never observed"):
        quantizer.require_calibrated("conv.weight_quantizer")
    quantizer.enabled = False
    for x in torch.randn(3, 3, 40):
        quantizer(x, activation)
        scale, zero_point = qparams(quantizer.observer.low, quantizer.observer.high, quantizer.spec)
        torch.testing.assert_close(quantizer.scale.detach(), scale, rtol=1e-6, atol=0)  # PACT keeps a multiple of it
        assert torch.equal(quantizer.zero_point, zero_point)
    assert quantizer.observer.low.min() >= activation.low
    assert quantizer.observer.high.max() <= activation.high
    assert quantizer.calibrated
    quantizer.reset()
    assert not quantizer.calibrated


def test_without_calibration_the_first_batch_sets_the_range_and_the_second_does_not(make):
    quantizer = make()
    quantizer(torch.randn(3, 40))
    assert quantizer.calibrated
    before = state(quantizer)
    quantizer(torch.randn(3, 40) * 100)
    assert all(torch.equal(v, before[k]) for k, v in quantizer.state_dict().items())


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_switched_off_it_is_the_activation(make, activation):
    quantizer = make()
    quantizer.enabled = False
    x = torch.randn(3, 40) * 4
    assert torch.equal(quantizer(x, activation), clamp(x, activation))


def test_gradients_reach_the_range_while_learning_and_only_then(make):
    quantizer = calibrated(make)
    parameters = list(quantizer.parameters())
    x = (torch.randn(3, 40) * 4).requires_grad_()
    for learns, freeze in (
        (True, lambda: None),
        (False, lambda: setattr(quantizer, "observing", False)),
        (True, lambda: setattr(quantizer, "observing", True)),
        (False, quantizer.eval),
    ):
        freeze()
        quantizer.zero_grad()
        x.grad = None
        quantizer(x).sum().backward()
        assert x.grad.abs().sum() > 0
        assert all((p.grad is not None) == learns for p in parameters)


def test_frozen_ranges_stay_under_momentum_and_weight_decay(make):
    quantizer = calibrated(make)
    weight = torch.nn.Parameter(torch.randn(3, 40) * 4)
    optimizer = torch.optim.SGD([weight, *quantizer.parameters()], lr=0.1, momentum=0.9, weight_decay=0.1)

    def step():
        optimizer.zero_grad()
        quantizer(weight).square().sum().backward()
        optimizer.step()

    step()
    quantizer.observing = False
    before = state(quantizer)
    for _ in range(3):
        step()
    assert all(torch.equal(v, before[k]) for k, v in quantizer.state_dict().items())


def test_training_moves_the_range(make):
    quantizer = calibrated(make)
    if not list(quantizer.parameters()):
        pytest.skip("DoReFa's grid is fixed")
    before = quantizer.scale.detach().clone()
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=0.1)
    quantizer(torch.randn(3, 40) * 4).square().sum().backward()
    optimizer.step()
    assert (quantizer.scale != before).all()


def test_an_optimizer_that_oversteps_leaves_a_grid(make):
    quantizer = calibrated(make)
    with torch.no_grad():
        for p in quantizer.parameters():
            p.mul_(-1.0)
    assert (quantizer.scale > 0).all()
    assert quantizer(torch.randn(3, 40)).isfinite().all()
    with torch.no_grad():
        for p in quantizer.parameters():
            p.zero_()
    assert (quantizer.scale > 0).all()
    assert quantizer(torch.randn(3, 40)).isfinite().all()
    assert positive(torch.tensor([-2.0, 0.0])).tolist() == pytest.approx([2.0, 1e-12])


def test_float32_inside_autocast_and_the_dtype_comes_back(make):
    x = (torch.randn(3, 40) * 3).bfloat16()
    in_float = calibrated(make, x.float())
    in_autocast = copy.deepcopy(in_float)
    expected = in_float(x.float())
    with torch.autocast("cpu", torch.bfloat16):
        y = in_autocast(x)
        y.float().sum().backward() if y.requires_grad else None
    assert y.dtype is torch.bfloat16
    assert torch.equal(y, expected.bfloat16())
    assert in_autocast.scale.dtype is torch.float32


def test_state_is_whole_from_the_start_and_loads(make):
    quantizer, other = calibrated(make), make()
    assert {k: (v.shape, v.dtype) for k, v in state(quantizer).items()} == {
        k: (v.shape, v.dtype) for k, v in state(other).items()
    }
    kinds = {name: type(p) for name, p in make().named_parameters()}
    assert {name: type(p) for name, p in quantizer.named_parameters()} == kinds
    other.load_state_dict(quantizer.state_dict())
    assert other.calibrated
    x = torch.randn(3, 40) * 4
    assert torch.equal(other(x), quantizer(x))
    assert torch.equal(other.scale, quantizer.scale)


def test_a_single_value_and_zeros_start_a_grid(make):
    for x in (torch.zeros(3, 1), torch.full((3, 1), 2.5)):
        quantizer = calibrated(make, x)
        assert (quantizer.scale > 0).all()
        near = 0.1  # of a value that is the only one in its range
        assert torch.allclose(quantizer(x), x, rtol=near)


def test_broken_values_count_as_seen(make):
    quantizer = calibrated(make, torch.tensor([[1.0, float("nan")]] * 3))
    assert quantizer.calibrated
    assert quantizer.scale.isnan().any()


def test_grid_and_switches_are_in_the_repr(make):
    assert "enabled=True, observing=True" in repr(make())
