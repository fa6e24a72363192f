from __future__ import annotations

import math

import pytest
import torch

from qat.observers import Histogram, MinMax, MovingAverage, Observer, Percentile
from qat.spec import IntSpec

GRID = IntSpec(bits=3, signed=False, scheme="affine")
EXTREMES = {"min_max": MinMax, "latest": lambda **k: MinMax(latest=True, **k), "moving_average": MovingAverage}
OBSERVERS = EXTREMES | {
    "percentile": lambda **k: Percentile(percent=90.0, **k),
    "histogram": lambda **k: Histogram(spec=GRID, **k),
    "latest_histogram": lambda **k: Histogram(spec=GRID, latest=True, **k),
}


@pytest.fixture(params=OBSERVERS)
def make(request):
    return OBSERVERS[request.param]


@pytest.fixture(params=EXTREMES)
def make_extremes(request):
    return EXTREMES[request.param]


def test_the_base_class_is_abstract():
    with pytest.raises(TypeError, match=r"abstract method '?update"):
        Observer()


def test_never_observed_is_an_empty_range(make):
    for observer in (make(), make(shape=(3,), axis=0)):
        assert (observer.low == math.inf).all()
        assert (observer.high == -math.inf).all()


def test_one_tensor_is_its_own_range(make_extremes):
    x = torch.randn(3, 4, 5)
    observer = make_extremes()
    observer.observe(x)
    assert (observer.low, observer.high) == (x.min(), x.max())


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_per_channel_is_per_tensor_on_every_slice(make, axis):
    batches = [torch.randn(3, 4, 5) for _ in range(3)]
    observer = make(shape=(batches[0].shape[axis],), axis=axis)
    slices = [make() for _ in range(batches[0].shape[axis])]
    for x in batches:
        observer.observe(x)
        for one, part in zip(slices, x.unbind(axis), strict=True):
            one.observe(part)
    assert torch.equal(observer.low, torch.stack([one.low for one in slices]))
    assert torch.equal(observer.high, torch.stack([one.high for one in slices]))


@pytest.mark.parametrize(("low", "high"), [(0.0, math.inf), (0.0, 6.0), (-1.0, 1.0)])
def test_a_clamped_range_is_the_range_of_the_clamped_tensor(make, low, high):
    ours, theirs = make(), make()
    for x in torch.randn(4, 100) * 4:
        ours.observe(x, low=low, high=high)
        theirs.observe(x.clamp(low, high))
    assert torch.equal(ours.low, theirs.low)
    assert torch.equal(ours.high, theirs.high)


def test_reset_forgets(make):
    observer, fresh = make(), make()
    observer.observe(torch.randn(10) * 100)
    observer.reset()
    assert all(torch.equal(a, b) for a, b in zip(observer.buffers(), fresh.buffers(), strict=True))
    x = torch.randn(10)
    observer.observe(x)
    fresh.observe(x)
    assert all(torch.equal(a, b) for a, b in zip(observer.buffers(), fresh.buffers(), strict=True))


def test_half_precision_is_observed_as_float32(make):
    observer, other = make(), make()
    x = torch.tensor([-1.5, 2.0], dtype=torch.bfloat16)
    observer.observe(x)
    other.observe(x.float())
    assert observer.low.dtype is torch.float32
    assert (observer.low, observer.high) == (other.low, other.high)


def test_zeros_alone_are_a_range(make):
    for observer in (make(), make(shape=(2,), axis=0)):
        observer.observe(torch.zeros(2, 3))
        assert (observer.low == 0).all()
        assert (observer.high == 0).all()


@pytest.mark.parametrize("value", [3.0, -2.5])
def test_a_single_value_stays_in_its_range(make, value):
    observer = make()
    observer.observe(torch.tensor(value))
    end = observer.high if value > 0 else observer.low
    near = 0.01  # a histogram knows a value to half a bin
    assert float(end) == pytest.approx(value, rel=near)
    assert observer.low <= observer.high


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_inf_are_not_hidden(make, broken):
    observer = make()
    observer.observe(torch.tensor([*[1.0] * 99, broken]))
    assert not torch.isfinite(torch.stack([observer.low, observer.high])).all()


def test_the_same_batches_give_the_same_bits(make):
    one, two = make(), make()
    for x in torch.randn(3, 1000):
        one.observe(x)
        two.observe(x.clone())
    assert (one.low, one.high) == (two.low, two.high)


def test_state_is_saved_and_nothing_else_is_needed(make):
    observer, other = make(), make()
    for x in torch.randn(3, 10):
        observer.observe(x)
    other.load_state_dict(observer.state_dict())
    x = torch.randn(10)
    observer.observe(x)
    other.observe(x)
    assert torch.equal(observer.low, other.low)
    assert torch.equal(observer.high, other.high)


def test_no_gradient_reaches_an_observer(make):
    observer = make()
    observer.observe(torch.randn(10, requires_grad=True))
    assert not observer.low.requires_grad
