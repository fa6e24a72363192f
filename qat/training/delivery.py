"""Delivery: the network as `fit` leaves it becomes a file, and the file is compared with it.

before training    refused: a path that could not be written, a package that is missing. Warned of: a CPU that saturates
after training     convert a copy -> export with what the file says of itself -> audit -> verify in its runtime, on the
                   validation data
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from qat import machine
from qat.artifact import Artifact
from qat.audit import REQUIRED, require_sound
from qat.calibrate import labels_of
from qat.convert import convert
from qat.errors import ConfigError, ExportError
from qat.export import WRITERS
from qat.export import export as export_model
from qat.inputs import Inputs, first_output
from qat.parity import ParityReport
from qat.placement import PreparedModel
from qat.placement.flat import flat_inputs
from qat.placement.prepared import device_of
from qat.runtime import load, require_installed
from qat.target import Target
from qat.training.batches import looking_ahead, training_loader
from qat.training.calls import Step, evaluating
from qat.verify import verify as verify_artifact

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """Where a trained network goes.

    Args:
        path: the file; its suffix says which kind.
        verify: whether it is audited, and compared with the network.
        training_batches: for the comparison, of the training data, where there is no validation data.
    """

    path: Path
    verify: bool = True
    training_batches: int = 8

    def require_possible(self, target: Target) -> None:
        """Raise what `deliver` would raise in the end, and warn of what its parity table would show.

        Raises:
            ExportError: the folder cannot be written.
            ConfigError: another suffix; the package of the runtime is not installed.
        """
        require_writable(self.path)
        require_installed(target, self.path.suffix)
        if target.needs_vnni and target.weight_bits > 7 and (message := machine.saturation(target.name, machine.cpu())):
            logger.warning(message)

    def deliver(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        name: str,
        network: PreparedModel,
        float_sha256: str | None = None,
    ) -> tuple[Artifact, ParityReport | None]:
        """Export the network that `pl_module` holds as `name`, and verify it; the module itself stays as it is.

        Args:
            trainer: of the fit that has ended.
            pl_module: holds the network.
            name: of the network.
            network: as it was trained.
            float_sha256: fingerprint of the float network that it was prepared from, where that is known.

        Raises:
            ArtifactError: the file does not pass its audit.
            ParityError: it does not behave like the network.
        """
        about = describe(trainer) | ({"float_sha256": float_sha256} if float_sha256 else {})
        if self.verify:
            with self._examples(trainer, pl_module, name, network) as examples:
                about |= _top1(network, examples)
        integer = convert(network)
        artifact = export_model(integer, self.path, metadata=about)
        logger.info("wrote %s, %.2f MB", artifact.path, artifact.size_bytes / 1e6)
        if not self.verify:
            return artifact, None
        require_sound(
            artifact, runtime=load(artifact), example=_batch(network), integer=integer, require=(*REQUIRED, *about)
        )
        with self._examples(trainer, pl_module, name, network) as examples:
            report = verify_artifact(network, artifact, examples)
        default = report.stages[-1]
        logger.info("%s: %.2f %% agree over %d examples", default.name, default.agreement, report.examples)
        return artifact, report

    @contextmanager
    def _examples(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, name: str, network: PreparedModel
    ) -> Iterator[Iterator[Any]]:
        """What the network is given for the validation data, with labels where the batches have any."""
        validates = trainer.val_dataloaders is not None
        loader = trainer.val_dataloaders if validates else training_loader(trainer)
        limits = list(trainer.num_val_batches) if validates else None
        count = sum(limits) if limits is not None else self.training_batches
        step = Step(pl_module, {name: network}, validation=validates)

        def example(batch: Any) -> Any:
            call = step.calls(batch)[name]
            inputs = Inputs(call.args, call.kwargs)
            labels = labels_of(batch)
            return inputs if labels is None else (inputs, labels)

        with evaluating(pl_module), looking_ahead(loader, count, limits) as batches:
            yield map(example, batches)


def describe(trainer: pl.Trainer) -> dict[str, str]:
    """What a file says of the training that it comes from."""
    dataset = getattr(training_loader(trainer), "dataset", None)
    data = trainer.datamodule if trainer.datamodule is not None else dataset  # type: ignore[attr-defined]
    return {
        "commit": machine.commit() or "none: not run in a repository",
        "data": type(data).__name__ if data is not None else "several loaders",
        "epochs": str(trainer.current_epoch),
        "versions": json.dumps(machine.versions()),
    }


@torch.no_grad()
def _top1(network: PreparedModel, examples: Iterator[Any]) -> dict[str, str]:
    """Top-1 of the fake-quant network in percent, where its outputs are logits of labelled examples."""
    correct = count = 0
    for example in examples:
        labels = labels_of(example)
        if labels is None:
            return {}
        logits = first_output(Inputs.of(example).call(network, device_of(network)))
        if logits.ndim != 2 or labels.shape != logits.shape[:1] or labels.is_floating_point():
            return {}
        correct += int((logits.argmax(1) == labels.to(logits.device)).sum())
        count += len(labels)
    return {"top1": f"{100 * correct / count:.2f}"} if count else {}


def _batch(network: PreparedModel) -> list[Tensor] | None:
    """The example inputs, if all of them are tensors with an example in each row."""
    flat = flat_inputs(network.graphs[False], network.example_inputs)
    inputs = [one.example for one in flat if isinstance(one.example, Tensor)] or list(network.example_inputs)
    batched = all(isinstance(x, Tensor) and x.ndim > 0 for x in inputs) and len({len(x) for x in inputs}) == 1
    return inputs if batched else None


def require_writable(path: Path) -> None:
    """Raise `ExportError` when `path` could not be written, `ConfigError` when its suffix is not known."""
    if path.suffix not in WRITERS:
        raise ConfigError(f"cannot export to {path.name!r}; known suffixes: {', '.join(WRITERS)}")
    if path.is_dir():
        raise ExportError(f"cannot write {path}: it is a folder. Name a file for export, e.g. {path / 'model.onnx'}")
    folder = next(p for p in (path.parent.absolute(), *path.parent.absolute().parents) if p.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise ExportError(f"cannot write {path}: {folder} is no folder that can be written. Choose another for export")
