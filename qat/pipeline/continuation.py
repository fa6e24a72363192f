"""A grid goes on in its folder: a job that ended there with the same settings is not run again."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from qat.pipeline.changes import changed
from qat.report.objective import FAILURE
from qat.report.results import read_results
from qat.training.interruption import BEGUN, ENDED

log = logging.getLogger(__name__)


def ended_before(cfg: DictConfig) -> dict[str, Any] | None:
    """The results of this job, if it ended well in an earlier start of the same sweep; None to run it."""
    folder = Path(cfg.run_dir)
    alone = not HydraConfig.initialized() or HydraConfig.get().mode is not RunMode.MULTIRUN
    if alone or (folder / FAILURE).is_file() or not all((folder / name).is_file() for name in (BEGUN, ENDED)):
        return None
    if changed(cfg, folder):
        return None
    log.info("%s ended before, and is not run again", folder)
    return read_results(folder)
