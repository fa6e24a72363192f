"""Random draws as a pure function of (seed, epoch, batch), so that a resumed run draws what the uninterrupted one drew.

A checkpoint does not hold the global generators, and dropout and stochastic depth draw from them.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from qat.errors import ConfigError

KEY = 0x71A7  # apart from other users of SeedSequence with the same seed


class SeedEveryEpoch(pl.Callback):
    """Seeds the global generators of torch, NumPy and Python at every training epoch and batch.

    Data that draws from them while a loader is made, like `shuffle=True`, is not covered: give such a loader its own
    generator, or a sampler with `set_epoch`.

    Args:
        seed: the run seed; 0 is one.

    Raises:
        ConfigError: a negative seed.
    """

    def __init__(self, seed: int) -> None:
        if seed < 0:
            raise ConfigError(f"need seed >= 0, got {seed}")
        self.seed = seed

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Seed what the first batch is made with."""
        self._reseed(trainer, 0)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed the step, and what later batches are made with."""
        self._reseed(trainer, 1 + batch_idx)

    def _reseed(self, trainer: pl.Trainer, position: int) -> None:
        keys = [KEY, self.seed, trainer.global_rank, trainer.current_epoch, position]
        first, second = np.random.SeedSequence(keys).generate_state(2)
        torch.manual_seed(int(first))
        np.random.seed(int(second))
        random.seed(int(second))
