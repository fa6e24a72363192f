"""What a person sees of a run while it goes on: one line per stage, and bars."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from omegaconf import DictConfig

from qat.training.progress import followed, working


def quiet() -> None:
    """One line per stage: without what Lightning says at every Trainer, of devices, tips, and its own libraries."""
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    logging.getLogger("pytorch_lightning.accelerators.cuda").setLevel(logging.WARNING)
    logging.getLogger("lightning_fabric.utilities.distributed").setLevel(logging.WARNING)
    for message in (
        r".*isinstance\(treespec, LeafSpec\).*",  # Lightning 2.6 on torch 2.15
        ".*does not have many workers.*",  # images in memory need none
        ".*Using `DistributedSampler` with the dataloaders.*",  # docs/scaling.md: some images count twice
        ".*Experiment logs directory.*",  # a resumed run
        ".*Checkpoint directory .* exists and is not empty.*",
    ):
        warnings.filterwarnings("ignore", message=message)


def follow(cfg: DictConfig, batches: Iterable[Any], stage: str, total: int | None = None) -> Iterable[Any]:
    """The batches of a stage, with a bar on a terminal."""
    return followed(batches, stage, total) if cfg.trainer.enable_progress_bar else batches


def busy(cfg: DictConfig, stage: str) -> AbstractContextManager[None]:
    """Around a stage that cannot say how far it is, with its name on a terminal."""
    return working(stage) if cfg.trainer.enable_progress_bar else nullcontext()
