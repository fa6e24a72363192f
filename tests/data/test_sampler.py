from __future__ import annotations

import pytest
import torch
from torch.utils.data import TensorDataset

from qat.data.sampler import Draw, EpochSampler, LateLoader

ROWS = 50


def dataset() -> TensorDataset:
    return TensorDataset(torch.arange(ROWS))


def order(seed: int, epoch: int, **kwargs: int) -> list[int]:
    sampler = EpochSampler(dataset(), seed=seed, **kwargs)
    sampler.set_epoch(epoch)
    return [draw.row for draw in sampler]


def test_an_epoch_is_a_permutation_and_says_which_epoch_it_is():
    sampler = EpochSampler(dataset(), seed=0)
    sampler.set_epoch(3)
    draws = list(sampler)
    assert sorted(draws) == [Draw(row, 3) for row in range(ROWS)]


def test_the_order_is_a_function_of_seed_and_epoch():
    orders = {(seed, epoch): order(seed, epoch) for seed in range(3) for epoch in range(3)}
    assert all(order(*key) == rows for key, rows in orders.items())
    # seed + epoch as the only key would make (0, 1) and (1, 0) the same
    assert len({tuple(rows) for rows in orders.values()}) == len(orders)


def test_ranks_share_an_epoch():
    first, second = (order(0, 1, num_replicas=2, rank=rank) for rank in range(2))
    assert [row for pair in zip(first, second, strict=True) for row in pair] == order(0, 1)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_epoch_may_be_set_after_the_iterator_was_made(num_workers: int):
    sampler = EpochSampler(dataset(), seed=0)
    loader = LateLoader(dataset=Rows(), sampler=sampler, batch_size=10, num_workers=num_workers, collate_fn=list)
    batches = iter(loader)  # as Lightning does when it resumes
    sampler.set_epoch(2)
    assert [row for batch in batches for row in batch] == order(0, 2)


class Rows(torch.utils.data.Dataset[int]):
    """Answers a draw with its row."""

    def __getitem__(self, draw: Draw) -> int:
        return draw.row
