"""Is the artefact what it claims to be? Checks before anyone measures how well it does.

ONNX        the checker's full check, the opset that the target asks for, no unused initializer
grids       every scale positive and finite, every weight within its grid: in an ONNX file, and in the integer model
            that a file was written from
metadata    what the file must say of itself is in the file, not only in our record of it
names       inputs and outputs are called in the file as in our record
batch       sizes 1, 2, 7 and 64 run, and an example's output does not depend on its company
TensorRT    its documented rules, where it is the target
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError
from onnx import numpy_helper
from torch import Tensor, fx, nn

from qat.artifact import Artifact
from qat.convert import OPS
from qat.errors import ArtifactError
from qat.export.tensorrt_lint import tensorrt_findings
from qat.runtime import Runtime

# of a damaged file: UnicodeDecodeError, a ValueError, where a name is hit
UNREADABLE = (OSError, ValueError, DecodeError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError)
BATCHES = (1, 2, 7, 64)
INT8_MAX = 127
REQUIRED = ("model", "recipe", "target", "fingerprint")  # of any integer file
DELIVERED = (*REQUIRED, "commit", "data", "top1", "float_sha256")  # of a run's
# Sums of floats in another order, which another batch size may bring, flip single integers; a batch size that is baked
# into a model moves whole outputs. As a share of the largest of them.
COMPANY = 0.1
PACKED = "_int4"  # what qat.export.packing adds to a weight's name
Grids = Mapping[str, tuple[int, int]]


def audit(
    artifact: Artifact,
    *,
    runtime: Runtime | None = None,
    example: Tensor | Sequence[Tensor] | None = None,
    integer: nn.Module | None = None,
    require: Sequence[str] = REQUIRED,
) -> tuple[str, ...]:
    """What is wrong with an artefact, one sentence each; empty when nothing is.

    Args:
        artifact: from `qat.export`.
        runtime: the artefact, loaded: what it says of itself and how its ends are called is read back.
        example: input `[N, ...]`, or several of them; with `runtime`, batch sizes are tried.
        integer: the model that it was written from, with the grid of every weight.
        require: keys that the metadata must have.
    """
    found = [f"the metadata lacks {key}" for key in require if not artifact.metadata.get(key)]
    grids = weight_grids(integer) if isinstance(integer, fx.GraphModule) else {}
    if isinstance(integer, fx.GraphModule):
        found += _integer_model(integer, grids)
    if artifact.kind == ".onnx":
        found += _graph(artifact, grids)
        if artifact.target is not None and artifact.target.activation_symmetric:
            found += tensorrt_findings(artifact.path)
    if runtime is not None:
        found += _said(artifact, runtime)
        if example is not None:
            found += _batches(runtime, [example] if isinstance(example, Tensor) else list(example))
    return tuple(dict.fromkeys(found))


def require_sound(
    artifact: Artifact,
    *,
    runtime: Runtime | None = None,
    example: Tensor | Sequence[Tensor] | None = None,
    integer: nn.Module | None = None,
    require: Sequence[str] = REQUIRED,
) -> None:
    """Raise `ArtifactError` with all that `audit` finds."""
    found = audit(artifact, runtime=runtime, example=example, integer=integer, require=require)
    if found:
        raise ArtifactError(f"{artifact.path.name} does not pass its audit: {'; '.join(found)}. Export the model again")


def weight_grids(integer: fx.GraphModule) -> dict[str, tuple[int, int]]:
    """Least and largest integer of every stored tensor's grid, by the tensor's name."""
    found = {}
    for node in integer.graph.nodes:
        if node.target in (OPS.dequantize_per_channel.default, OPS.dequantize_per_tensor.default):
            source, (low, high) = node.args[0], node.args[-3:-1]
            if source.op == "get_attr":
                found[str(source.target)] = (low, high)
    return found


def _integer_model(integer: fx.GraphModule, grids: Grids) -> Iterator[str]:
    for name, (low, high) in grids.items():
        values = integer.get_buffer(name)
        if values.numel() and (values.min() < low or values.max() > high):
            yield f"weight {name}: {int(values.min())} .. {int(values.max())} is outside its grid {low} .. {high}"
    for node in integer.graph.nodes:
        if node.target in (OPS.quantize_per_tensor.default, OPS.dequantize_per_tensor.default):
            scale = node.args[1]
            if not isinstance(scale, fx.Node) and not (math.isfinite(scale) and scale > 0):
                yield f"{node.name}: a scale of {scale}"
        elif node.target is OPS.dequantize_per_channel.default:
            scales = integer.get_buffer(str(node.args[1].target))
            if not (torch.isfinite(scales).all() and (scales > 0).all()):
                yield f"weight {node.args[0].target}: a scale that is 0, negative, NaN or Inf"


def _graph(artifact: Artifact, grids: Grids) -> Iterator[str]:
    try:
        model = onnx.load(artifact.path)
        onnx.checker.check_model(model, full_check=True)
    except UNREADABLE as error:
        yield f"the ONNX checker rejects it: {(str(error).strip().splitlines() or [type(error).__name__])[0]}"
        return
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), None)
    if artifact.target is not None and opset != artifact.target.opset:
        yield f"opset {opset}, need {artifact.target.opset}"
    used = {name for node in model.graph.node for name in node.input} | {o.name for o in model.graph.output}
    unused = [i.name for i in model.graph.initializer if i.name not in used]
    if unused:
        yield f"initializers that nothing reads: {', '.join(unused)}"
    yield from _missing(artifact, {p.key: p.value for p in model.metadata_props})
    yield from _names(artifact, [i.name for i in model.graph.input], [o.name for o in model.graph.output])
    constants = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    bits = artifact.target.weight_bits if artifact.target is not None else 8
    packed = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "Cast"}
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            yield from _grid(node, constants, grids, packed.get(node.input[0], node.input[0]), 2 ** (bits - 1))


def _grid(
    node: onnx.NodeProto, constants: dict[str, np.ndarray], grids: Grids, stored: str, limit: int
) -> Iterator[str]:
    """Of one pair: the scale, and the constant `stored` that it reads, directly or from where it is packed."""
    scale = constants.get(node.input[1])
    if scale is not None and not (np.isfinite(scale).all() and (scale > 0).all()):
        yield f"{node.op_type} of {node.input[0]}: a scale that is 0, negative, NaN or Inf"
    weight = constants.get(stored)
    if weight is None or weight.dtype.name not in ("int8", "int4") or not weight.size:
        return
    name, least = stored.removesuffix(PACKED), int(weight.astype(np.int8).min())
    most = int(weight.astype(np.int8).max())
    mirrored = min(limit, INT8_MAX)  # a channel, where BatchNorm's gamma was negative
    per_channel = scale is not None and scale.ndim > 0
    low, high = grids.get(name, (-mirrored, mirrored) if per_channel else (-limit, limit - 1))
    if least < low or most > high:
        yield f"weight {name}: {least} .. {most} is outside its grid {low} .. {high}"


def _missing(artifact: Artifact, inside: Mapping[str, str]) -> Iterator[str]:
    missing = [key for key, value in artifact.metadata.items() if inside.get(key) != value]
    if missing:
        yield f"the file itself does not say {', '.join(missing)}"


def _names(artifact: Artifact, inputs: Sequence[str], outputs: Sequence[str]) -> Iterator[str]:
    for what, found, need in (("inputs", inputs, artifact.inputs), ("outputs", outputs, artifact.outputs)):
        if found and tuple(found) != need:
            yield f"its {what} are called {', '.join(found)} in the file, need {', '.join(need)}"


def _said(artifact: Artifact, runtime: Runtime) -> Iterator[str]:
    yield from _missing(artifact, runtime.metadata)
    yield from _names(artifact, runtime.inputs, runtime.outputs)


def _batches(run: Runtime, examples: Sequence[Tensor]) -> Iterator[str]:
    one = run(*(x[:1] for x in examples))
    for size in BATCHES:
        try:
            found = run(*(x[:1].expand(size, *x.shape[1:]) for x in examples))
        except ArtifactError as error:
            yield f"batch size {size} fails: {error}"
            continue
        if found.shape != (size, *one.shape[1:]):
            yield f"batch size {size} gives shape {tuple(found.shape)}"
        elif float((found - one).abs().max()) > COMPANY * float(one.abs().max()):
            yield f"batch size {size} gives another result for the same example"
