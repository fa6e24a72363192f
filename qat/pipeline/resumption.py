"""An interrupted run goes on in its folder; a new one starts in a folder without the results of another."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from qat.report.objective import FAILURE
from qat.report.record import FOLDER as RECORD
from qat.training import run_to_resume
from qat.training.interruption import CHECKPOINT, LAST

log = logging.getLogger(__name__)

OVERRIDE, MEASURED = "override.yaml", "sensitivity.json"  # of a run that searched widths, which go on with it


def resumed(cfg: DictConfig) -> DictConfig:
    """The config; with `ckpt_path=last`, that of the interrupted run, which goes on in its folder."""
    if cfg.ckpt_path != LAST:
        return cfg
    alone = HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN
    folder = run_to_resume(Path(cfg.run_dir), siblings=not alone)
    checkpoint = folder / CHECKPOINT
    cfg = cfg.copy()
    cfg.run_dir, cfg.ckpt_path = str(folder), str(checkpoint) if checkpoint.is_file() else None
    log.info("%s goes on %s", folder, "from its last epoch" if cfg.ckpt_path else "from its start: no epoch was done")
    return cfg


def clear(folder: Path, *, resumed: bool) -> None:
    """Take away what an earlier run in the same folder left, and what would speak for this one."""
    for name in (FAILURE, "results.json", *(() if resumed else (CHECKPOINT, OVERRIDE, MEASURED))):
        (folder / name).unlink(missing_ok=True)
    if not resumed:
        shutil.rmtree(folder / RECORD, ignore_errors=True)
