"""Write a model as an artefact: `export(model, "model.onnx")`. The suffix decides the format.

A writer that needs a package beyond the installed ones is imported when it is asked for.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import fx, nn

from qat.artifact import Artifact, fingerprint
from qat.errors import ConfigError
from qat.export.bias import float_biases, with_zero_points
from qat.export.flat import with_flat_inputs
from qat.export.program import export_program
from qat.export.rows import as_rows
from qat.export.xnnpack import for_xnnpack
from qat.target import Target

WRITERS = {
    ".onnx": "qat.export.onnx:write_onnx",
    ".pt2": "qat.export.pt2:write_pt2",
    ".xml": "qat.export.openvino:write_openvino",
    ".pte": "qat.export.executorch:write_executorch",
}
COMPILED = "qat.export.inductor:write_inductor"  # `.pt2` for target inductor
MAX_BATCH = {".pte": 128}  # ExecuTorch wants a bound; it costs no memory, because the caller brings the buffers


def export(
    model: nn.Module,
    path: str | Path,
    example_inputs: tuple[Any, ...] | None = None,
    *,
    target: str | Mapping[str, Any] | Target | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Artifact:
    """Write `model` with a dynamic batch dimension; whole or not at all.

    Args:
        model: an integer model from `qat.convert`, or any float model in evaluation mode.
        path: the file; `.onnx`, `.pt2`, `.xml` and `.pte` are known.
        example_inputs: needed for a float model; an integer model brings its own.
        target: another target than the one that the integer model was prepared for; their grids must agree.
        metadata: what the file shall say about itself besides model, recipe, target and fingerprint; text by key.

    Raises:
        ExportError: an operator that the exporter does not know, a batch size baked into the model, a full disk.
        ConfigError: another suffix, a target with other grids, a package that is not installed.
    """
    path = Path(path)
    about = dict(getattr(model, "meta", {}).get("prepared", {}))
    about["target"] = _target(about.get("target"), target)
    if path.suffix not in WRITERS:
        raise ConfigError(f"cannot export to {path.name!r}; known suffixes: {', '.join(WRITERS)}")
    inputs = example_inputs or about.get("example_inputs")
    if inputs is None:
        raise ConfigError("export of a float model needs example_inputs=(tensor, ...)")
    about["metadata"] = {**_metadata(model, about), **(metadata or {})}
    compiled = path.suffix == ".pt2" and about["target"] is not None and about["target"].runtime == "inductor"
    write = _writer(COMPILED if compiled else WRITERS[path.suffix])
    model, inputs = with_flat_inputs(model, inputs)
    if "sites" in about:
        model = _for_target(model, path.suffix, about["target"], inputs)
    program = export_program(model, inputs, max_batch=MAX_BATCH.get(path.suffix))
    return replace(write(program, path, about), metadata=about["metadata"])


def _for_target(model: nn.Module, suffix: str, target: Target | None, inputs: tuple[Any, ...]) -> nn.Module:
    """The integer model in the form that a runtime takes its operators in; computes the same."""
    if not isinstance(model, fx.GraphModule):  # prepared by modules
        if suffix == ".pte" or (target is not None and target.float_bias):
            raise ConfigError(f"{suffix} for this target rewrites the graph; prepare the model with placement=graph")
        return model
    if suffix == ".pte":
        return for_xnnpack(with_zero_points(float_biases(model)), inputs)
    if target is not None and target.runtime == "inductor" and suffix == ".pt2":
        return with_zero_points(float_biases(model))
    if suffix == ".xml":  # it computes them in float anyway, and needs no scales and operators then
        return float_biases(model)
    if suffix == ".onnx" and target is not None:
        return float_biases(model) if target.float_bias else as_rows(model, inputs)
    return model


def _target(trained: Target | None, asked: str | Mapping[str, Any] | Target | None) -> Target | None:
    if asked is None:
        return trained
    target = Target.parse(asked)
    differ = target.differences(trained) if trained is not None else ()
    if differ and trained is not None:
        raise ConfigError(
            f"the model was trained for {trained.name}, whose grids {target.name} does not compute on: "
            f"{'; '.join(differ)}. Prepare the float model for {target.name}"
        )
    return target


def _metadata(model: nn.Module, about: Mapping[str, Any]) -> dict[str, str]:
    target = about["target"]
    found = {
        "model": about.get("model", type(model).__name__),
        "recipe": about.get("recipe", "float"),
        "fingerprint": fingerprint(model),
    }
    if target is not None:
        found["target"] = target.name
    if "sites" in about:
        found["sites"] = json.dumps(about["sites"])
    return found


def _writer(path: str) -> Callable[..., Artifact]:
    module, _, function = path.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except ImportError as error:
        extra = module.rpartition(".")[2]
        raise ConfigError(
            f"export for {extra} needs a package that is not installed ({error}): run `uv sync --extra {extra}`"
        ) from error


__all__ = ["export"]
