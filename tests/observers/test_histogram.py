from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qat.errors import ConfigError
from qat.observers import Histogram
from qat.spec import IntSpec

GRID = IntSpec(bits=4, narrow=True)
CHANNELS = IntSpec(bits=4, narrow=True, granularity="per_channel")


@given(order=st.permutations(range(5)), seed=st.integers(0, 100))
def test_the_order_of_batches_does_not_matter(order, seed):
    scales = torch.tensor([1.0, 0.01, 30.0, 0.0, 5.0])[:, None]
    batches = torch.randn(5, 50, generator=torch.Generator().manual_seed(seed)) * scales
    one, two = Histogram(spec=GRID), Histogram(spec=GRID)
    for x in batches:
        one.observe(x)
    for i in order:
        two.observe(batches[i])
    assert all(torch.equal(a, b) for a, b in zip(one.buffers(), two.buffers(), strict=True))


def test_batches_are_counted_together():
    batches = torch.randn(4, 1000) * torch.tensor([1.0, 2.0, 0.1, 8.0])[:, None]
    one, whole = Histogram(spec=GRID), Histogram(spec=GRID)
    for x in batches:
        one.observe(x)
    whole.observe(batches.flatten())
    assert all(torch.equal(a, b) for a, b in zip(one.buffers(), whole.buffers(), strict=True))
    assert one.counts.sum() == 4000


def test_outliers_are_clipped_where_that_costs_less():
    x = torch.cat([torch.randn(10_000), torch.tensor([50.0])])
    few, many = Histogram(spec=GRID), Histogram(spec=IntSpec(bits=8, narrow=True))
    few.observe(x)
    many.observe(x)
    assert few.high < 10
    assert many.high > few.high


def test_latest_forgets_and_keeps_no_histogram():
    observer, fresh = (Histogram(spec=CHANNELS, latest=True, shape=(3,), axis=0) for _ in range(2))
    observer.observe(torch.randn(3, 100) * 50)
    x = torch.randn(3, 100)
    observer.observe(x)
    fresh.observe(x)
    assert torch.equal(observer.low, fresh.low)
    assert torch.equal(observer.high, fresh.high)
    assert observer.counts.numel() == 0


@pytest.mark.parametrize("bins", [0, 2, 6, 2047])
def test_bins_are_added_in_pairs(bins):
    with pytest.raises(ConfigError, match=rf"need bins >= 4 and a multiple of 4.*got {bins}"):
        Histogram(bins=bins, spec=GRID)


def test_it_needs_a_grid():
    with pytest.raises(ConfigError, match="Histogram weighs the errors of a grid; build it with spec"):
        Histogram()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_gpu_gives_the_same_range():
    x = torch.randn(3, 10_000)
    here = Histogram(spec=CHANNELS, shape=(3,), axis=0)
    there = Histogram(spec=CHANNELS, shape=(3,), axis=0).cuda()
    for part in x.split(4000, 1):
        here.observe(part)
        there.observe(part.cuda())
    assert torch.equal(here.counts, there.counts.cpu())
    step = 1 / 16  # of the range: sums in another order may tip the search to the next candidate
    torch.testing.assert_close(here.high, there.high.cpu(), rtol=step, atol=0)
