"""What a run is for: `task`, the first thing that is read of a config.

qat            calibrate, train with fake quantization, deliver
ptq            calibrate, deliver
dynamic        integer weights, activation ranges taken when the model runs; deliver
weight_only    integer weights, activations in float; deliver
analyze        what each tensor costs at each width, and widths under a budget; calibrate, deliver
evaluate       a delivered file, or a float checkpoint, on a data set
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from omegaconf import DictConfig

from qat.errors import ConfigError, unknown_name
from qat.pipeline.evaluate import evaluate
from qat.pipeline.resumption import resumed
from qat.pipeline.sensible import require_sensible
from qat.pipeline.static import analyze, ptq, static
from qat.pipeline.terminal import quiet
from qat.pipeline.weights import dynamic, weight_only
from qat.training.interruption import LAST

TASKS: Mapping[str, Callable[[DictConfig], dict[str, Any]]] = {
    "qat": static,
    "ptq": ptq,
    "dynamic": dynamic,
    "weight_only": weight_only,
    "analyze": analyze,
    "evaluate": evaluate,
}


def run(cfg: DictConfig) -> dict[str, Any]:
    """One run from config to card; returns what `results.json` holds.

    Raises:
        QatError: anything the user can mend; nothing is left half-written.
    """
    task = require_task(cfg)
    quiet()
    require_sensible(cfg)
    cfg = resumed(cfg)
    if cfg.quiet:
        cfg = cfg.copy()
        cfg.trainer.enable_progress_bar = False
    return TASKS[task](cfg)


def require_task(cfg: DictConfig) -> str:
    """What the run is for.

    Raises:
        ConfigError: a name that is none; a checkpoint to go on from, and a task that does not train.
    """
    task = str(cfg.task)
    if task not in TASKS:
        raise ConfigError(unknown_name("task", task, TASKS))
    resumes = (None, LAST) if task in ("ptq", "analyze", "dynamic", "weight_only") else (None,)  # their float baseline
    if task != "qat" and cfg.ckpt_path not in resumes:
        raise ConfigError(
            f"ckpt_path resumes training, and task={task} trains nothing. To start from the weights of a checkpoint, "
            "use init_from"
        )
    return task
