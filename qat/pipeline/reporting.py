"""The report over all that a run wrote."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path

import torch
from hydra.core.hydra_config import HydraConfig

from qat.artifact import Artifact
from qat.data import ImageData
from qat.placement.prepared import PreparedModel
from qat.recorder import record_classes, record_layers, record_run
from qat.report import record
from qat.report.folder import read_run
from qat.report.page import write_report
from qat.runtime import load
from qat.runtime.profile import profile
from qat.training import Classifier

log = logging.getLogger(__name__)


def write_page(
    prepared: PreparedModel, baseline: Classifier, artifact: Artifact, data: ImageData, folder: Path
) -> None:
    """The records of where the run comes from, its operators and classes, and the report over all that it wrote."""
    try:
        measured = profile(artifact, next(iter(data.val_dataloader()))[0][:1])
        record.write(folder, record_run(command()))
        record.write(folder, record_layers(prepared, data.val_dataloader(), profile=measured))
        int8 = load(artifact, threads=torch.get_num_threads())
        normalization = getattr(data, "normalization", None)
        pixels = {"mean": normalization.mean, "std": normalization.std} if normalization is not None else {}
        record.write(
            folder,
            record_classes(baseline.cpu().eval(), int8, data.val_dataloader(), data.class_names, folder, **pixels),
        )
        log.info("report: %s", write_report([read_run(folder)], folder))
    except Exception as error:  # whatever it is, a run that trained for hours does not end over its report
        log.warning("no report: %s", error)


def command_line() -> list[str]:
    """What was given on the command line, `KEY=VALUE` each; empty where Hydra did not start the run."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def command() -> str:
    """The command that starts this run again; empty where Hydra did not start it."""
    if not HydraConfig.initialized():
        return ""
    return shlex.join(["python", f"{HydraConfig.get().job.name}.py", *command_line()])
