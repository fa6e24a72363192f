"""The report over all that a run wrote."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from torch import Tensor

from qat.artifact import Artifact
from qat.data import ImageData
from qat.errors import QatError
from qat.pipeline.terminal import busy, follow
from qat.placement.prepared import PreparedModel
from qat.recorder import record_classes, record_layers, record_run
from qat.report import record
from qat.report.folder import read_run
from qat.report.page import write_report
from qat.report.record import Classes, Layers
from qat.runtime import load
from qat.runtime.profile import profile

log = logging.getLogger(__name__)


def write_page(folder: Path, *recorded: Callable[[], Any]) -> None:
    """The records of where the run comes from and of what it found, and the report over all that it wrote."""
    try:
        record.write(folder, record_run(command()))
        for each in recorded:
            record.write(folder, each())
        log.info("report: %s", write_report([read_run(folder)], folder))
    except Exception as error:  # whatever it is, a run that trained for hours does not end over its report
        # what is not ours to say is a bug, and its traceback says where
        log.warning("no report: %s", error, exc_info=not isinstance(error, QatError))


def operators(cfg: DictConfig, prepared: PreparedModel, artifact: Artifact, data: ImageData) -> Layers:
    """The record of every operator, with its time in the runtime."""
    with busy(cfg, "looking at every operator"):
        measured = profile(artifact, next(iter(data.val_dataloader()))[0][:1])
        return record_layers(prepared, data.val_dataloader(), profile=measured)


def classes(
    cfg: DictConfig, float_model: Callable[[Tensor], Tensor], artifact: Artifact, data: ImageData, folder: Path
) -> Classes:
    """The record of what an artefact says otherwise than the float model, with images."""
    int8 = load(artifact, threads=torch.get_num_threads())
    normalization = getattr(data, "normalization", None)
    pixels = {"mean": normalization.mean, "std": normalization.std} if normalization is not None else {}
    batches = follow(cfg, data.val_dataloader(), "comparing float and int8")
    return record_classes(float_model, int8, batches, data.class_names, folder, **pixels)


def command_line() -> list[str]:
    """What was given on the command line, `KEY=VALUE` each; empty where Hydra did not start the run."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def command() -> str:
    """The command that starts this run again; empty where Hydra did not start it."""
    if not HydraConfig.initialized():
        return ""
    return shlex.join(["python", f"{HydraConfig.get().job.name}.py", *command_line()])
