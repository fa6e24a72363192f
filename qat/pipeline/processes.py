"""A run of several processes: all begin with the first one's config, and only that one speaks."""

from __future__ import annotations

import logging
from typing import Any

import pytorch_lightning as pl
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from qat.errors import ConfigError
from qat.settings import build
from qat.training.processes import agreed, first, meet
from qat.training.strategy import require_replicas


def trainer_of(cfg: DictConfig) -> pl.Trainer:
    """The Trainer that `trainer` describes, without what a run adds to it.

    Raises:
        ConfigError: a wrong value, or a key that the run sets itself.
    """
    set_by_run: dict[str, Any] = {"max_epochs": 1, "callbacks": None, "plugins": None, "default_root_dir": None}
    off: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer: pl.Trainer = build(cfg, "trainer", **off, **set_by_run)
    return trainer


def joined(cfg: DictConfig) -> DictConfig:
    """Start, or meet, the processes that `trainer` is for; the config as the first one has it, with its folder.

    Raises:
        ConfigError: a strategy that shards parameters; a job of a sweep that wants several processes.
    """
    trainer = trainer_of(cfg)
    require_replicas(trainer.strategy)
    if trainer.world_size == 1:
        return cfg
    if HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN:
        raise ConfigError(
            f"trainer.devices and trainer.num_nodes ask for {trainer.world_size} processes, and a sweep runs each job "
            "in one: set trainer.devices=1, with hydra/launcher=parallel for jobs side by side; or leave out -m"
        )
    meet(trainer)
    if not first():
        logging.getLogger("qat").setLevel(logging.ERROR)
    shared = OmegaConf.create(agreed(OmegaConf.to_container(cfg, resolve=True)))
    assert isinstance(shared, DictConfig)
    return shared
