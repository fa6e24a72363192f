"""Write a model as an artefact: `export(model, "model.onnx")`, or `.pt2`. The suffix decides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import fx, nn

from qat.artifact import Artifact
from qat.errors import ConfigError
from qat.export.onnx import write_onnx
from qat.export.program import export_program
from qat.export.pt2 import write_pt2

WRITERS = {".onnx": write_onnx, ".pt2": write_pt2}


def export(model: nn.Module, path: str | Path, example_inputs: tuple[Any, ...] | None = None) -> Artifact:
    """Write `model` with a dynamic batch dimension; whole or not at all.

    Args:
        model: an integer model from `qat.convert`, or any float model in evaluation mode.
        path: the file; `.onnx` and `.pt2` are known.
        example_inputs: needed for a float model; an integer model brings its own.

    Raises:
        ExportError: an operator that the exporter does not know, a batch size baked into the model, a full disk.
        ConfigError: another suffix.
    """
    path = Path(path)
    if path.suffix not in WRITERS:
        raise ConfigError(f"cannot export to {path.name!r}; known suffixes: {', '.join(WRITERS)}")
    about = model.meta.get("prepared", {}) if isinstance(model, fx.GraphModule) else {}
    inputs = example_inputs or about.get("example_inputs")
    if inputs is None:
        raise ConfigError("export of a float model needs example_inputs=(tensor, ...)")
    return WRITERS[path.suffix](export_program(model, inputs), path, about)


__all__ = ["export"]
