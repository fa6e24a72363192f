"""Where a training stands inside an epoch: how many batches are done, and what the next one draws from.

taken    behind a step: random generators, those of loaders, states of loaders that keep one
at       in a checkpoint: the loops as they are between two batches, or before a validation that is to be repeated
return   in a resumed fit: the same order, without the batches that are done, then the same random state

A loader that keeps a state (`state_dict`, as `LateLoader` does) goes on by itself. Another one starts anew with the
random state of its epoch, and the batches that are done are read and dropped.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from qat.functional.across import several
from qat.training.batches import generators
from qat.training.reseed import SeedEveryEpoch

EPOCH, BATCH, VALIDATION = "epoch_progress", "epoch_loop.batch_progress", "epoch_loop.val_loop.batch_progress"
STAGES = ("ready", "started", "processed", "completed")  # of a batch, in Lightning's counters


def randomness(trainer: pl.Trainer) -> dict[str, Any]:
    """The state of the global generators, and of those that training loaders have of their own; plain values."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
        "numpy": [str(kind), np.asarray(keys).tolist(), *rest],
        "python": random.getstate(),
        "loaders": [generator.get_state() for generator in _own(trainer)],
    }


def set_randomness(trainer: pl.Trainer, state: Mapping[str, Any]) -> None:
    """As it was. Of several processes one alone was taken down, so that they keep theirs (see SeedEveryEpoch)."""
    if several():
        return
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(state["cuda"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, np.uint32), *rest))
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    for generator, own in zip(_own(trainer), state["loaders"], strict=False):
        generator.set_state(own)


def loader_states(trainer: pl.Trainer) -> list[Any]:
    """What loaders keep that can say where they are."""
    return [loader.state_dict() for loader in _loaders(trainer) if _keeps_state(loader)]


def at(checkpoint: dict[str, Any], *, loaders: list[Any], validating: bool) -> None:
    """Rewrite the loops of a checkpoint: behind the last step, with nothing begun that is not done.

    Args:
        checkpoint: as Lightning dumps it while a batch begins.
        loaders: `loader_states` behind that step.
        validating: whether it was dumped in a validation, which is then repeated from its beginning.
    """
    loop = checkpoint["loops"]["fit_loop"]
    batches = loop[BATCH]
    for counters in (batches["total"], batches["current"]):
        counters.update(dict.fromkeys(STAGES, counters["completed"]))
    if loaders:
        loop["state_dict"]["combined_loader"] = loaders
    if validating:
        begun = {**dict.fromkeys(STAGES, 0), "ready": 1, "started": 1}  # how Lightning knows that it was interrupted
        loop[VALIDATION].update(total=dict(begun), current=dict(begun), is_last_batch=False)
    else:
        batches["is_last_batch"] = False  # Lightning looks ahead


def load_left_over(trainer: pl.Trainer) -> None:
    """Give loaders the states of a checkpoint that Lightning has not, when `fit` begins.

    It reads them where it makes the loaders, and a schedule that asks for the number of batches has them made before.
    """
    loop = trainer.fit_loop
    if _inside(trainer) and loop._combined_loader_states_to_load and all(map(_keeps_state, _loaders(trainer))):
        assert loop._data_fetcher is not None
        loop._load_combined_loader_states()
        iter(loop._data_fetcher)


def go_to(trainer: pl.Trainer, pl_module: pl.LightningModule, epoch: Mapping[str, Any], *, anew: bool) -> None:
    """Make the training loaders go on where a checkpoint was taken, when `fit` begins.

    Args:
        trainer: in `on_train_start`, with the loops of the checkpoint.
        pl_module: what it trains.
        epoch: `randomness` when the epoch began.
        anew: whether loaders were asked for batches only after that, and not when `fit` began.
    """
    if not _inside(trainer) or all(map(_keeps_state, _loaders(trainer))):
        return
    loop = trainer.fit_loop
    done, fetcher = loop.epoch_loop.batch_progress.current.completed, loop._data_fetcher
    assert fetcher is not None
    set_randomness(trainer, epoch)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, SeedEveryEpoch):
            callback.on_train_epoch_start(trainer, pl_module)
    for sampler in _samplers(_loaders(trainer)):
        sampler.set_epoch(trainer.current_epoch)
    if anew:
        iter(fetcher)
    for _ in range(done):
        next(fetcher)
    fetcher.fetched -= done  # Lightning adds them itself


def _inside(trainer: pl.Trainer) -> bool:
    """Whether `fit` goes on where batches of an epoch are left, and not a validation alone, or nothing."""
    loop = trainer.fit_loop
    return loop.restarted_mid_epoch and not loop.epoch_loop.batch_progress.is_last_batch


def _loaders(trainer: pl.Trainer) -> list[Any]:
    combined = trainer.fit_loop._combined_loader
    return [] if combined is None else combined.flattened


def _own(trainer: pl.Trainer) -> list[torch.Generator]:
    return [generator for loader in _loaders(trainer) for generator in generators(loader)]


def _keeps_state(loader: Any) -> bool:
    return hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")


def _samplers(loaders: Iterable[Any]) -> list[Any]:
    found = []
    for loader in loaders:
        batches = getattr(loader, "batch_sampler", None)
        found += [getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None)]
    return [sampler for sampler in found if callable(getattr(sampler, "set_epoch", None))]
