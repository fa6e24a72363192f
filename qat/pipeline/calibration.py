"""Calibration of a run: ranges from data, what helps besides, and top-1 then.

    RUN/calibrated.json    {"top1": percent}, once it is done

A run that goes on from a checkpoint has its weights and ranges from there, and this number from the folder that the
checkpoint lies in; without that it calibrates again, only to know it.
"""

from __future__ import annotations

import json
import logging
from functools import partial
from itertools import islice
from pathlib import Path

from omegaconf import DictConfig

from qat.checkpoint import load_prepared
from qat.data import ImageData
from qat.files import write_text
from qat.pipeline.helpers import Helpers
from qat.pipeline.terminal import follow
from qat.pipeline.trainer import measure_top1
from qat.placement import PreparedModel
from qat.training import Classifier, QuantizationAwareTraining, require_training_state
from qat.training.interruption import CALIBRATED, CHECKPOINT
from qat.training.processes import agreed, first

log = logging.getLogger(__name__)


def calibrated(
    cfg: DictConfig, callback: QuantizationAwareTraining, helpers: Helpers, module: Classifier, data: ImageData,
    checkpoint: str | None,
) -> float:  # fmt: skip
    """Give a prepared network its ranges; those of `checkpoint`, with its weights, where training goes on from it.

    Returns:
        Top-1 after calibration, in percent.

    Raises:
        CheckpointError: a checkpoint that is none of a Trainer's, or of a network that was prepared differently.
    """
    prepared = module.model
    assert isinstance(prepared, PreparedModel)
    top1 = None
    if checkpoint is not None:  # before Lightning, which would end in a traceback
        require_training_state(checkpoint)
        top1 = agreed(_top1(checkpoint))
    if top1 is None:
        count = cfg.qat.calibration_batches
        callback.calibrate(module, follow(cfg, islice(data.calibration_dataloader(), count), "calibrating", count))
        helpers.calibrated(prepared, data.calibration_dataloader(), count, partial(follow, cfg))
        top1 = measure_top1(cfg, module, data)
        if first():
            write_text(Path(cfg.run_dir) / CALIBRATED, json.dumps({"top1": top1}) + "\n")
    if checkpoint is not None:
        load_prepared(prepared, checkpoint)
        log.info("weights and ranges from %s", checkpoint)
    return top1


def _top1(checkpoint: str) -> float | None:
    """What the run of a checkpoint had after calibration; None where its folder does not say."""
    folder = Path(checkpoint).absolute().parents[len(Path(CHECKPOINT).parts) - 1]
    try:
        found = json.loads((folder / CALIBRATED).read_text())["top1"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, float) else None
