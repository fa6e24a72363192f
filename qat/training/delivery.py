"""Delivery: the network as `fit` leaves it becomes a file, and the file is compared with it.

before training    the path is refused if it could not be written
after training     convert a copy -> export -> verify in its runtime, on the validation data
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from qat.artifact import Artifact
from qat.calibrate import labels_of
from qat.convert import convert
from qat.errors import ConfigError, ExportError
from qat.export import WRITERS
from qat.export import export as export_model
from qat.inputs import Inputs
from qat.placement import PreparedModel
from qat.training.batches import looking_ahead, training_loader
from qat.training.calls import Step, evaluating
from qat.verify import ParityReport
from qat.verify import verify as verify_artifact

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """Where a trained network goes.

    Args:
        path: the file; its suffix says which kind.
        verify: whether it is compared with the network.
        training_batches: for the comparison, of the training data, where there is no validation data.
    """

    path: Path
    verify: bool = True
    training_batches: int = 8

    def require_possible(self) -> None:
        """Raise what `deliver` would raise in the end: `ExportError` for the folder, `ConfigError` for the suffix."""
        require_writable(self.path)

    def deliver(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, name: str, network: PreparedModel
    ) -> tuple[Artifact, ParityReport | None]:
        """Export the network that `pl_module` holds as `name`, and verify it; the module itself stays as it is."""
        artifact = export_model(convert(network), self.path)
        logger.info("wrote %s, %.2f MB", artifact.path, artifact.size_bytes / 1e6)
        report = self._verify(trainer, pl_module, name, network, artifact) if self.verify else None
        return artifact, report

    def _verify(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, name: str, network: PreparedModel, artifact: Artifact
    ) -> ParityReport:
        validates = trainer.val_dataloaders is not None
        loader = trainer.val_dataloaders if validates else training_loader(trainer)
        limits = list(trainer.num_val_batches) if validates else None
        count = sum(limits) if limits is not None else self.training_batches
        step = Step(pl_module, {name: network}, validation=validates)

        def examples(batch: Any) -> Any:
            call = step.calls(batch)[name]
            inputs = Inputs(call.args, call.kwargs)
            labels = labels_of(batch)
            return inputs if labels is None else (inputs, labels)

        with evaluating(pl_module), looking_ahead(loader, count, limits) as batches:
            report = verify_artifact(network, artifact, map(examples, batches))
        default = report.stages[-1]
        logger.info("%s: %.2f %% agree over %d examples", default.name, default.agreement, report.examples)
        return report


def require_writable(path: Path) -> None:
    """Raise `ExportError` when `path` could not be written, `ConfigError` when its suffix is not known."""
    if path.suffix not in WRITERS:
        raise ConfigError(f"cannot export to {path.name!r}; known suffixes: {', '.join(WRITERS)}")
    if path.is_dir():
        raise ExportError(f"cannot write {path}: it is a folder. Name a file for export, e.g. {path / 'model.onnx'}")
    folder = next(p for p in (path.parent.absolute(), *path.parent.absolute().parents) if p.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise ExportError(f"cannot write {path}: {folder} is no folder that can be written. Choose another for export")
