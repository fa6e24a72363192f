from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from qat.observers import MinMax

BATCHES = st.lists(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=5), min_size=1, max_size=6)


@given(batches=BATCHES)
def test_the_range_of_everything_seen(batches):
    observer = MinMax()
    for batch in batches:
        observer.observe(torch.tensor(batch))
    everything = torch.tensor([x for batch in batches for x in batch])
    assert (observer.low, observer.high) == (everything.min(), everything.max())


@given(batches=BATCHES)
def test_latest_is_the_range_of_the_last_tensor(batches):
    observer = MinMax(latest=True)
    for batch in batches:
        observer.observe(torch.tensor(batch))
    assert (observer.low, observer.high) == (min(batches[-1]), max(batches[-1]))
