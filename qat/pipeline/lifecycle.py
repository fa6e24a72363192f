"""What every task does alike: begin in a folder of its own, end in a card and a gate."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from qat import machine
from qat.files import explained_disk, write_text
from qat.pipeline.resumption import clear
from qat.pipeline.stopwatch import Stopwatch
from qat.pipeline.terminal import quiet
from qat.report.card import card
from qat.training import held
from qat.training.processes import first
from qat.training.workers import explained_workers

log = logging.getLogger(__name__)


@contextmanager
def begun(cfg: DictConfig) -> Iterator[tuple[Path, Stopwatch]]:
    """The run's folder, which no other run may use meanwhile, and a running stopwatch."""
    quiet()
    folder, clock = Path(cfg.run_dir), Stopwatch()
    with held(folder), explained_workers(), explained_disk(), clock("total"):
        yield folder, clock


def settle(cfg: DictConfig, folder: Path) -> None:
    """The config was found right: take away an earlier run's results, write the config down, seed."""
    if first():
        clear(folder, resumed=cfg.ckpt_path is not None)
        write_text(folder / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
    pl.seed_everything(cfg.seed, workers=True, verbose=False)


def circumstances(cfg: DictConfig, clock: Stopwatch) -> dict[str, Any]:
    """What stands beside every number: task, seed, size of a timed batch, seconds, machine, versions."""
    return {
        "task": str(cfg.task),
        "seed": cfg.seed,
        "latency_batch_size": cfg.latency.batch_size,
        "seconds": {stage: round(s, 2) for stage, s in clock.seconds.items()},
        "cpu": machine.cpu(),
        "versions": machine.versions(),
    }


def conclude(results: Mapping[str, Any], folder: Path) -> None:
    """Write `results.json`, and show the card."""
    write_text(folder / "results.json", json.dumps(results, indent=2) + "\n")
    Console().print(card(results))
