"""Trials of a model before it costs time: two images through it in both modes, its integers through the exporter."""

from __future__ import annotations

import copy
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from qat.convert import convert
from qat.errors import ConfigError, ExportError, QatError
from qat.export import export
from qat.placement import PreparedModel
from qat.target import Target
from qat.training.outputs import Outputs


def require_classifier(model: nn.Module, images: Tensor, num_classes: int, way_out: str) -> None:
    """Raise unless the model takes the images and answers with logits for the classes of the data.

    The model is as it was afterwards, and so are the random generators.

    Args:
        model: On the CPU.
        images: [N, 3, H, W], N >= 2: BatchNorm needs two.
        num_classes: Of the data.
        way_out: How this model gets another number of classes.

    Raises:
        ConfigError: It fails on images of this size, returns what the loss cannot use, or other numbers of classes.
    """
    name = type(model).__name__
    trial = copy.deepcopy(model)  # BatchNorm statistics move in training mode
    for training in (False, True):
        trial.train(training)
        try:
            with torch.no_grad(), torch.random.fork_rng():
                returned = trial(images)
        except QatError:
            raise
        except Exception as error:  # whatever a forward raises: RuntimeError, AssertionError, ValueError, ...
            height, width = images.shape[-2:]
            mode = "training" if training else "evaluation"
            reason = (str(error).strip() or "no message").splitlines()[0]
            raise ConfigError(
                f"{name} rejects images of {height} x {width} in {mode} mode ({type(error).__name__}: {reason}). Set "
                "data.image_size to what it was made for, or build it for this size"
            ) from error
        outputs = Outputs.of(returned, name)
        for logits in (outputs.logits, *outputs.auxiliary):
            if tuple(logits.shape) != (len(images), num_classes):
                raise ConfigError(
                    f"{name} returns {list(logits.shape)} for {len(images)} images, and the data has {num_classes} "
                    f"classes; need one logit for each class. {way_out}"
                )


def require_exportable(prepared: PreparedModel, target: Target) -> None:
    """Raise unless the integers of a calibrated model can be written for its target.

    Args:
        prepared: Untouched.
        target: Where it will run.

    Raises:
        ExportError: What the exporter cannot follow, before training and not after it.
    """
    with TemporaryDirectory() as folder:
        try:
            export(convert(prepared), Path(folder) / f"trial{target.artifact}")
        except ExportError as error:
            raise ExportError(f"{error}. Found before training; qat.try_export=false trains nevertheless") from error
