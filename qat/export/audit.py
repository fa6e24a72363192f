"""Is the artefact what it claims to be? Checks on the file alone, before anyone measures how well it does.

ONNX        the checker's full check, the opset that the target asks for, no unused initializer
grids       every scale positive and finite, every weight within its grid
metadata    model, recipe, target and fingerprint are in the file
batch       sizes 1, 2, 7 and 64 run, and each example's output does not depend on its company
TensorRT    its documented rules, where it is the target
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from qat.artifact import Artifact
from qat.errors import ArtifactError
from qat.export.tensorrt_lint import tensorrt_findings

BATCHES = (1, 2, 7, 64)
REQUIRED = ("model", "recipe", "target", "fingerprint")


def audit(
    artifact: Artifact, *, run: Callable[[Tensor], Tensor] | None = None, example: Tensor | None = None
) -> tuple[str, ...]:
    """What is wrong with an artefact, one sentence each; empty when nothing is.

    Args:
        artifact: from `qat.export`; of an `.onnx` file the graph is checked, of any other the metadata.
        run: the artefact, loaded; with `example`, batch sizes are tried.
        example: inputs `[N, ...]`.
    """
    found = [f"the metadata lacks {key}" for key in REQUIRED if not artifact.metadata.get(key)]
    if artifact.kind == ".onnx":
        found += _graph(artifact)
        if artifact.target is not None and artifact.target.activation_symmetric:
            found += tensorrt_findings(artifact.path)
    if run is not None and example is not None:
        found += _batches(run, example)
    return tuple(found)


def require_sound(artifact: Artifact, **how: object) -> None:
    """Raise `ArtifactError` with all that `audit` finds."""
    found = audit(artifact, **how)  # type: ignore[arg-type]
    if found:
        raise ArtifactError(f"{artifact.path.name} does not pass its audit: {'; '.join(found)}. Export the model again")


def _graph(artifact: Artifact) -> Iterator[str]:
    try:
        model = onnx.load(artifact.path)
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:
        yield f"the ONNX checker rejects it: {str(error).strip().splitlines()[0]}"
        return
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), None)
    if artifact.target is not None and opset != artifact.target.opset:
        yield f"opset {opset}, need {artifact.target.opset}"
    used = {name for node in model.graph.node for name in node.input} | {o.name for o in model.graph.output}
    unused = [i.name for i in model.graph.initializer if i.name not in used]
    if unused:
        yield f"initializers that nothing reads: {', '.join(unused)}"
    inside = {p.key: p.value for p in model.metadata_props}
    missing = [key for key in artifact.metadata if key not in inside]
    if missing:
        yield f"the file itself does not say {', '.join(missing)}"
    constants = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    bits = artifact.target.weight_bits if artifact.target is not None else 8
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            yield from _grid(node, constants, 2 ** (bits - 1))


def _grid(node: onnx.NodeProto, constants: dict[str, np.ndarray], limit: int) -> Iterator[str]:
    scale = constants.get(node.input[1])
    if scale is not None and not (np.isfinite(scale).all() and (scale > 0).all()):
        yield f"{node.op_type} of {node.input[0]}: a scale that is 0, negative, NaN or Inf"
    weight = constants.get(node.input[0])
    if weight is not None and weight.dtype == np.int8 and np.abs(weight.astype(np.int16)).max(initial=0) > limit:
        yield f"weight {node.input[0]}: {np.abs(weight.astype(np.int16)).max()} is outside the grid of +-{limit}"


def _batches(run: Callable[[Tensor], Tensor], example: Tensor) -> Iterator[str]:
    one = run(example[:1])
    for size in BATCHES:
        try:
            found = run(torch.cat([example[:1]] * size))
        except ArtifactError as error:
            yield f"batch size {size} fails: {error}"
            continue
        if found.shape != (size, *one.shape[1:]):
            yield f"batch size {size} gives shape {tuple(found.shape)}"
        elif not torch.equal(found, one.expand_as(found)):
            yield f"batch size {size} gives another result for the same example"
