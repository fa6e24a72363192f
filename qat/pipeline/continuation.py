"""A grid goes on in its folder: a job that ended there with the same settings is not run again."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from qat.report.objective import FAILURE
from qat.report.results import read_results
from qat.training.interruption import BEGUN, ENDED

log = logging.getLogger(__name__)

ELSEWHERE = {"run_dir", "ckpt_path", "cache_dir", "quiet", "report", "objective"}  # nothing of these is in the results


def ended_before(cfg: DictConfig) -> dict[str, Any] | None:
    """The results of this job, if it ended well in an earlier start of the same sweep; None to run it."""
    folder = Path(cfg.run_dir)
    alone = not HydraConfig.initialized() or HydraConfig.get().mode is not RunMode.MULTIRUN
    if alone or (folder / FAILURE).is_file() or not all((folder / name).is_file() for name in (BEGUN, ENDED)):
        return None
    now, then = (OmegaConf.to_container(c, resolve=True) for c in (cfg, OmegaConf.load(folder / BEGUN)))
    assert isinstance(now, dict)
    if not same({k: v for k, v in now.items() if k not in ELSEWHERE}, then):
        return None
    log.info("%s ended before, and is not run again", folder)
    return read_results(folder)


def same(now: Any, then: Any) -> bool:
    """Whether settings are those of an earlier run, which filled in what was null."""
    if isinstance(now, dict) and isinstance(then, dict):
        return all(same(value, then.get(key)) for key, value in now.items())
    return now is None or now == then
