from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from qat.functional.affine import dequantize
from qat.functional.ranges import qparams
from qat.functional.ste import IDENTITY, RELU, RELU6, Clamp
from qat.observers import MinMax, MovingAverage
from qat.quantizers import ObservedFakeQuantize
from qat.spec import IntSpec

UINT8 = IntSpec(signed=False, scheme="affine")
WEIGHT = IntSpec(bits=7, narrow=True, granularity="per_channel")
LATEST = lambda **k: MinMax(latest=True, **k)  # noqa: E731
ACTIVATIONS = {IDENTITY: lambda x: x, RELU: F.relu, RELU6: F.relu6, Clamp(0.0, 1.0): lambda x: F.hardtanh(x, 0, 1)}


def make(spec=UINT8, observer=MinMax, channels=None):
    return ObservedFakeQuantize(spec, observer, channels=channels)


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_learning_takes_the_range_behind_the_activation(activation):
    quantizer = make()
    for x in torch.randn(3, 50) * 4:
        quantizer(x, activation)
        scale, zero_point = qparams(quantizer.observer.low, quantizer.observer.high, UINT8)
        assert torch.equal(quantizer.scale, scale)
        assert torch.equal(quantizer.zero_point, zero_point)
    assert quantizer.observer.low >= activation.low
    assert quantizer.observer.high <= activation.high


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize(
    ("spec", "channels"),
    [(UINT8, None), (IntSpec(bits=4), None), (WEIGHT, 3), (IntSpec(granularity="per_channel", scheme="affine"), 3)],
    ids=str,
)
def test_output_is_what_the_stored_integers_mean(spec, channels, activation):
    """Forward = dequantize(integers): the very numbers that a runtime reads."""
    quantizer = make(spec, channels=channels)
    x = torch.randn(3, 40) * 4
    y = quantizer(x, activation)
    q = quantizer.integers(ACTIVATIONS[activation](x))
    assert q.dtype is (torch.int8 if spec.signed else torch.uint8)
    assert torch.equal(y, dequantize(q, quantizer.scale, quantizer.zero_point, axis=0))


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_switched_off_it_is_the_activation(activation):
    quantizer = make()
    quantizer.enabled = False
    x = torch.randn(100) * 4
    x[:2] = torch.tensor([0.0, 6.0])
    assert torch.equal(quantizer(x, activation), ACTIVATIONS[activation](x))
    assert quantizer.calibrated  # it still watches, so that calibration sees the float model


@pytest.mark.parametrize("observer", [MinMax, LATEST, MovingAverage])
def test_ranges_never_move_in_evaluation_mode_nor_when_frozen(observer):
    quantizer = make(observer=observer)
    quantizer(torch.randn(20))
    before = {k: v.clone() for k, v in quantizer.state_dict().items()}
    quantizer.eval()
    quantizer(torch.randn(20) * 100)
    quantizer.train()
    quantizer.observing = False
    quantizer(torch.randn(20) * 100)
    assert all(torch.equal(v, before[k]) for k, v in quantizer.state_dict().items())
    quantizer.observing = True
    quantizer(torch.randn(20) * 100)
    assert not torch.equal(quantizer.scale, before["scale"])


def test_calibrated_means_every_channel_was_seen():
    quantizer = make(WEIGHT, channels=2)
    assert not quantizer.calibrated
    quantizer(torch.randn(2, 5))
    assert quantizer.calibrated
    quantizer.require_calibrated("conv.weight_quantizer")
    quantizer.reset()
    assert not quantizer.calibrated


def test_broken_values_count_as_seen():
    quantizer = make()
    quantizer(torch.tensor([1.0, float("nan")]))
    assert quantizer.calibrated
    assert quantizer.scale.isnan()


def test_a_weight_that_sets_its_own_range_passes_every_gradient():
    quantizer = make(WEIGHT, LATEST, channels=2)
    x = torch.randn(2, 30, requires_grad=True)
    quantizer(x).sum().backward()
    assert torch.equal(x.grad, torch.ones(2, 30))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        quantizer(x)
    assert saved == []  # and needs no mask, so it keeps no copy of the weight
    quantizer.observing = False  # frozen: weights that grew beyond the range are clipped
    x.grad = None
    (quantizer(x * 2)).sum().backward()
    assert set(x.grad.unique().tolist()) == {0.0, 2.0}


@pytest.mark.parametrize(("spec", "channels"), [(UINT8, None), (WEIGHT, 4)])
def test_float32_inside_autocast_and_the_dtype_comes_back(spec, channels):
    """Autocast hands over bfloat16: the grid is computed in float32 of the same values, then rounded to bfloat16."""
    x = (torch.randn(4, 50) * 3).bfloat16()
    in_float, in_autocast = make(spec, channels=channels), make(spec, channels=channels)
    expected = in_float(x.float())
    with torch.autocast("cpu", torch.bfloat16):
        y = in_autocast(x)
    assert y.dtype is torch.bfloat16
    assert torch.equal(y, expected.bfloat16())
    assert torch.equal(in_autocast.scale, in_float.scale)
    assert in_autocast.scale.dtype is torch.float32


def test_autocast_does_not_round_float32():
    x = torch.randn(50) * 3
    in_float, in_autocast = make(), make()
    with torch.autocast("cpu", torch.bfloat16):
        y = in_autocast(x)
    assert torch.equal(y, in_float(x))


def test_switches_are_not_in_the_checkpoint():
    quantizer, other = make(), make()
    quantizer(torch.randn(10))
    quantizer.enabled = quantizer.observing = False
    other.load_state_dict(quantizer.state_dict())
    assert (other.enabled, other.observing) == (True, True)
    assert torch.equal(other.scale, quantizer.scale)
    assert set(quantizer.state_dict()) == {"scale", "zero_point", "observer.low", "observer.high"}
