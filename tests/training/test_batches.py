from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from qat.training.batches import looking_ahead


def rows(loader: Any) -> list[list[int]]:
    return [batch[0].tolist() for batch in loader]


def draws() -> tuple[float, float, float]:
    return float(torch.rand(())), float(np.random.rand()), random.random()


@pytest.mark.parametrize("own", [None, 5])
def test_looking_leaves_no_trace(own: int | None) -> None:
    def build() -> DataLoader[Any]:
        generator = None if own is None else torch.Generator().manual_seed(own)
        return DataLoader(TensorDataset(torch.arange(12)), batch_size=4, shuffle=True, generator=generator)

    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    expected = rows(build()), draws()
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    loader = build()
    with looking_ahead(loader, 2) as batches:
        assert len(list(batches)) == 2
        draws()
    assert (rows(loader), draws()) == expected


def test_a_collection_of_loaders_gives_batches_as_lightning_does() -> None:
    loaders = {name: DataLoader(TensorDataset(torch.arange(4)), batch_size=2) for name in "ab"}
    with looking_ahead(loaders, float("inf")) as batches:
        assert [sorted(batch) for batch in batches] == [["a", "b"], ["a", "b"]]
