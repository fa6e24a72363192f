"""What `train.py` does with its config: one run or job, and how it ends for the shell."""

from __future__ import annotations

import shlex
import sys
import traceback
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.console import Console

from qat.errors import ProcessError, QatError
from qat.pipeline.continuation import ended_before
from qat.pipeline.tasks import run
from qat.report.objective import objectives, require_objectives, write_failure
from qat.training import Interrupted, interruptible
from qat.training.processes import explained_processes, first


def train(cfg: DictConfig) -> float | tuple[float, ...] | None:
    """Run once; returns the objectives of a sweep, None for a job of a sweep that failed: the others go on."""
    try:
        wanted = require_objectives(cfg.objective)
        with interruptible(), explained_processes():
            return objectives(ended_before(cfg) or run(cfg), wanted)
    except Interrupted as error:
        if first():
            _say(f"{error}. To go on: {_again()}")
        raise SystemExit(error.exit_code) from None
    except Exception as error:
        sweeping = HydraConfig.get().mode is RunMode.MULTIRUN
        if not isinstance(error, QatError):
            if not sweeping:
                raise
            traceback.print_exc()
        if first() or not isinstance(error, ProcessError):  # the other process says it itself
            _say(f"{type(error).__name__}: {error}")
        if not sweeping:
            raise SystemExit(1) from None
        write_failure(cfg.run_dir, error)
        return None


def _say(message: str) -> None:
    Console(stderr=True, soft_wrap=True).print(message, markup=False, highlight=False)


def _again() -> str:
    """The command that goes on where this run was stopped."""
    hydra = HydraConfig.get()
    if hydra.mode is RunMode.MULTIRUN:
        return f"the same command with hydra.sweep.dir={hydra.sweep.dir} and ckpt_path=last"
    given = [o for o in hydra.overrides.task if not o.startswith("ckpt_path=")]
    # `last` looks beside the folder of the new run
    elsewhere = [o for o in hydra.overrides.hydra if o.startswith("hydra.run.dir=")]
    return shlex.join(["python", Path(sys.argv[0]).name, *given, *elsewhere, "ckpt_path=last"])


__all__ = ["train"]
