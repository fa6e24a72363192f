"""Batches ahead of their time: a look into a loader that leaves no trace in the training that follows.

Neither the global generators nor those of a loader move, so a run that looked ends like one that did not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.combined_loader import CombinedLoader
from pytorch_lightning.utilities.seed import isolate_rng


def training_loader(trainer: pl.Trainer) -> Any:
    """What `trainer.fit` trains on: a loader or a collection of them."""
    # Lightning has no public name for it before the first batch, and a datamodule is only one of its three sources
    return trainer.fit_loop._data_source.dataloader()


def stage_loader(trainer: pl.Trainer, stage: str) -> Any:
    """What `trainer.validate`, `test` or `predict` goes through: a loader or a collection of them."""
    loops: dict[str, Any] = {
        "validate": trainer.validate_loop,
        "test": trainer.test_loop,
        "predict": trainer.predict_loop,
    }
    return loops[stage]._data_source.dataloader()


def calibration_loader(trainer: pl.Trainer) -> Any:
    """The data module's `calibration_dataloader()`, where it has one; else what is trained on."""
    own = getattr(trainer.datamodule, "calibration_dataloader", None)  # type: ignore[attr-defined]
    return own() if own is not None else training_loader(trainer)


@contextmanager
def looking_ahead(loader: Any, count: float, limits: list[int | float] | int | None = None) -> Iterator[Iterator[Any]]:
    """The first batches of a loader, or a collection of them; all random state is as before afterwards.

    Args:
        loader: or a collection of them, which gives its batches together, as in training.
        count: of batches, at most.
        limits: for a collection that is read one loader after the other, as in validation: batches of each, at most.
    """
    mode = "max_size_cycle" if limits is None else "sequential"
    if isinstance(loader, CombinedLoader):  # whose batches come as it says
        loader, mode = loader.iterables, loader._mode
    combined = CombinedLoader(loader, mode)  # type: ignore[arg-type]
    combined.limits = limits
    own = {id(g): g for part in combined.flattened for g in generators(part)}
    states = {key: generator.get_state() for key, generator in own.items()}
    try:
        with isolate_rng():
            ahead = (batch for batch, _, _ in iter(combined))
            yield ahead if count == float("inf") else islice(ahead, int(count))
    finally:
        for key, generator in own.items():
            generator.set_state(states[key])
        combined.reset()


def generators(loader: Any) -> list[torch.Generator]:
    """The generators that a loader and its samplers have of their own."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    holders = [loader, getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None)]
    found = [getattr(holder, "generator", None) for holder in holders]
    return [g for g in found if isinstance(g, torch.Generator)]
