from __future__ import annotations

import math

import pytest
import torch

from qat.observers import MinMax, MovingAverage, Observer

OBSERVERS = [MinMax, lambda **k: MinMax(latest=True, **k), MovingAverage]


@pytest.fixture(params=OBSERVERS, ids=["min_max", "latest", "moving_average"])
def make(request):
    return request.param


def test_the_base_class_is_abstract():
    with pytest.raises(TypeError, match=r"abstract method '?update"):
        Observer()


def test_never_observed_is_an_empty_range(make):
    for observer in (make(), make(shape=(3,), axis=0)):
        assert (observer.low == math.inf).all()
        assert (observer.high == -math.inf).all()


def test_one_tensor_is_its_own_range(make):
    x = torch.randn(3, 4, 5)
    observer = make()
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
    observer = make()
    observer.observe(torch.tensor([-1.5, 2.0], dtype=torch.bfloat16))
    assert observer.low.dtype is torch.float32
    assert (observer.low, observer.high) == (-1.5, 2.0)


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
