"""An interrupted run goes on in its folder; a new one starts in a folder without the results of another."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from qat.errors import CheckpointError
from qat.files import TEMPORARY
from qat.pipeline.changes import begun_with, changed
from qat.report.objective import FAILURE
from qat.report.record import FOLDER as RECORD
from qat.training import run_to_resume
from qat.training.interruption import CALIBRATED, CHECKPOINT, FLOAT, LAST, newest_checkpoint

log = logging.getLogger(__name__)

OVERRIDE, MEASURED = "override.yaml", "sensitivity.json"  # of a run that searched widths, which go on with it


def resumed(cfg: DictConfig) -> DictConfig:
    """The config; with `ckpt_path=last`, that of the interrupted run, which goes on in its folder.

    Raises:
        CheckpointError: no run was interrupted, or one of another task.
    """
    if cfg.ckpt_path != LAST:
        return cfg
    alone = HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN
    folder = run_to_resume(
        Path(cfg.run_dir), siblings=not alone, alike=lambda of: begun_with(of) is not None and not changed(cfg, of)
    )
    before = begun_with(folder)
    if before is not None and (differ := changed(cfg, folder)):
        if "task" in differ:
            raise CheckpointError(
                f"ckpt_path=last: {folder} was begun with task={before.get('task')}, and task={cfg.task} cannot go on "
                "there; give its task, or leave ckpt_path out"
            )
        log.warning("%s was begun with another %s; it goes on with what this command has", folder, ", ".join(differ))
    checkpoint = newest_checkpoint(folder)
    if checkpoint is None and before is not None and (given := before.get("ckpt_path")) and Path(given).is_file():
        checkpoint = Path(given)  # from where the interrupted run went on
    cfg = cfg.copy()
    cfg.run_dir, cfg.ckpt_path = str(folder), None if checkpoint is None else str(checkpoint)
    log.info(
        "%s goes on %s", folder, f"from {checkpoint.name}" if checkpoint else "from its start: nothing was trained"
    )
    return cfg


def checkpoint_of(cfg: DictConfig, section: str) -> str | None:
    """The checkpoint that the training of a section, `float` or `qat`, goes on from."""
    if cfg.ckpt_path is None:
        return None
    of = FLOAT if Path(cfg.ckpt_path).parent.name == FLOAT else "qat"
    return str(cfg.ckpt_path) if of == section else None


def clear(folder: Path, *, resumed: bool) -> None:
    """Take away what an earlier run in the same folder left, and what would speak for this one."""
    for name in (FAILURE, "results.json", *(() if resumed else (OVERRIDE, MEASURED, CALIBRATED))):
        (folder / name).unlink(missing_ok=True)
    for path in folder.rglob(".*"):
        if TEMPORARY.fullmatch(path.name):  # of a process that was killed while it wrote
            path.unlink()
    if not resumed:
        shutil.rmtree(folder / RECORD, ignore_errors=True)
        checkpoints = (folder / CHECKPOINT).parent
        of_others = [*checkpoints.glob("*.ckpt"), *(checkpoints / FLOAT).glob("*.ckpt")]
        for path in (*of_others, folder / "float" / "metrics.csv", folder / "qat" / "metrics.csv"):
            path.unlink(missing_ok=True)
