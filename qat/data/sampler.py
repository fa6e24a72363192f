"""Epoch sampler: the order of training rows, a pure function of (seed, epoch) and of nothing that happened before.

It yields `Draw(row, epoch)`, so that a dataset knows which draw of a random augmentation is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

from torch.utils.data import DataLoader, Dataset, DistributedSampler

from qat.data.streams import Stream, stream_seed


class Draw(NamedTuple):
    """One row as it is seen in one epoch."""

    row: int
    epoch: int


class EpochSampler(DistributedSampler[Any]):
    """A shuffle of all rows for every epoch, this rank's share of it.

    Lightning calls `set_epoch`; another training loop does so itself, or sees the same epoch again.

    Args:
        dataset: Whose rows are ordered.
        seed: The run seed.
        num_replicas: Number of processes that share an epoch. Lightning leaves a `DistributedSampler` alone, so this
            must be right from the start.
        rank: Which of them this is.
    """

    def __init__(self, dataset: Dataset[Any], *, seed: int, num_replicas: int = 1, rank: int = 0) -> None:
        # DistributedSampler shuffles by seed + epoch, under which seed 0 in epoch 1 would be seed 1 in epoch 0
        super().__init__(
            dataset, num_replicas=num_replicas, rank=rank, shuffle=True, seed=stream_seed(Stream.ORDER, seed)
        )
        self.skip = 0  # draws that the next iteration leaves out, because they are done

    def __iter__(self) -> Iterator[Draw]:
        """This rank's draws of the epoch that is set when the first of them is asked for."""
        skip, self.skip = self.skip, 0
        for row in islice(super().__iter__(), skip, None):
            yield Draw(row, self.epoch)


class LateLoader(DataLoader[Any]):
    """A DataLoader that asks its sampler only when the first batch is asked for, and goes on inside an epoch.

    Lightning makes the iterator first and calls `set_epoch` afterwards. Workers start to fetch as soon as there is an
    iterator, so a resumed run with workers would repeat the order of epoch 0.
    """

    _given: tuple[int, int] = (0, 0)  # the epoch, and how many of its batches were handed out
    _goes_on: tuple[int, int] | None = None

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # a generator, not a _BaseDataLoaderIter
        """The batches of the epoch that is set when the first of them is asked for."""
        epoch, done = getattr(self.sampler, "epoch", 0), 0
        if self._goes_on is not None and self._goes_on[0] == epoch and isinstance(self.sampler, EpochSampler):
            done = self._goes_on[1]
            self.sampler.skip = done * (self.batch_size or 1)
        self._goes_on = None
        for batch in super().__iter__():
            done += 1
            self._given = (epoch, done)
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Where it is, for a checkpoint."""
        return {"epoch": self._given[0], "batches": self._given[1]}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Leave out the batches that are done, if the epoch is the one that they are of."""
        self._goes_on = (state["epoch"], state["batches"])
