"""Checkpoints of a Trainer: written whole or not at all, and read without running anything in them.

Trainer(plugins=[CarefulCheckpointIO()])      saves through qat.files, loads through qat.models.state_file
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from qat.errors import CheckpointError
from qat.files import replacing
from qat.models.state_file import read_content
from qat.provenance import KEY, unreadable
from qat.training.restorable import WAY_OUT, strange_structure

STATE = ("epoch", "global_step", "loops", "optimizer_states", "lr_schedulers")  # besides the weights
REMOTE = "://"  # s3://bucket/last.ckpt: Lightning's own way, through fsspec


class CarefulCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoints for runs that may meet a full disk, a crash, or a file of a stranger.

    A file that is damaged, or asks for code to be run, ends in one message. Checkpoints whose hyper-parameters or
    states are objects are refused as well; where such a file is trusted, `fit(..., weights_only=False)` loads it.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint; what was at `path` stays until the new file is whole.

        Raises:
            ExportError: the disk is full, or the folder cannot be written.
        """
        if storage_options is not None or REMOTE in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with replacing(path) as temporary:
            torch.save(checkpoint, temporary)

    def load_checkpoint(
        self, path: Any, map_location: Callable[..., Any] | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint onto the CPU; from there Lightning copies it to where the model is.

        Raises:
            CheckpointError: missing, damaged, refused, not a checkpoint of Lightning's, or of a newer format.
        """
        if weights_only is False or REMOTE in str(path):
            return super().load_checkpoint(path, map_location, weights_only)
        return _restorable(path, _read(path))


def _read(path: Any) -> dict[str, Any]:
    content = read_content(path)
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise CheckpointError(
            f"checkpoint {path} is none of a Trainer's: it has no state_dict. To start from weights alone, load "
            "them into the float model (qat.models.load_float, or init_from=FILE)"
        )
    if KEY in content and (wrong := unreadable(content[KEY])):
        raise CheckpointError(f"checkpoint {path} cannot be resumed here: {wrong}")
    return content


def _restorable(path: Any, content: dict[str, Any]) -> dict[str, Any]:
    if wrong := strange_structure(content):
        raise CheckpointError(f"checkpoint {path} is damaged, or none of a Trainer's: {wrong}. {WAY_OUT}")
    return content


def require_training_state(path: str | Path) -> None:
    """Raise `CheckpointError` for a checkpoint that holds no more than weights, so that training cannot go on."""
    content = _read(path)
    missing = [key for key in STATE if key not in content]
    if missing:
        raise CheckpointError(
            f"checkpoint {path} has weights but no state of training ({', '.join(missing)}), so it cannot be resumed; "
            "resume from checkpoints/last.ckpt of a run"
        )
    _restorable(path, content)
