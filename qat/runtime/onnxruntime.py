"""onnxruntime on the CPU, with graph optimizations off (is the graph right?) or on (is the deployment right?)."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import Tensor

from qat.artifact import Artifact
from qat.errors import ArtifactError
from qat.runtime.base import Runtime
from qat.runtime.coverage import Coverage, Executed, Kind

ort.set_default_logger_severity(3)  # errors only: its warnings concern nodes that it rewrites itself

EIGHT_BITS = {"tensor(uint8)", "tensor(int8)"}
ELEMENTS = {
    onnx.TensorProto.UINT8: "tensor(uint8)",
    onnx.TensorProto.INT8: "tensor(int8)",
    onnx.TensorProto.FLOAT: "tensor(float)",
}
BORDERS = {"QuantizeLinear", "DequantizeLinear", "Cast"}
UNPACKS = {"MatMulNBits", "GatherBlockQuantized"}  # the constant that they read is packed; they compute in float


class OnnxRuntime(Runtime):
    """An ONNX file in an inference session.

    Args:
        artifact: an `.onnx` artefact.
        optimize: all of onnxruntime's graph optimizations, its default, or none.
        threads: threads inside one operator; None leaves it to onnxruntime.

    Raises:
        ArtifactError: the file is missing, truncated, or holds what onnxruntime does not know.
    """

    def __init__(self, artifact: Artifact, *, optimize: bool = True, threads: int | None = None) -> None:
        super().__init__(artifact)
        self._optimize = optimize
        self.name = f"onnxruntime {ort.__version__}, optimizations {'on' if optimize else 'off'}"
        self._session = _session(artifact.path, artifact, optimize, threads)
        self.inputs = tuple(value.name for value in self._session.get_inputs())
        self.outputs = tuple(value.name for value in self._session.get_outputs())
        self.metadata = self._session.get_modelmeta().custom_metadata_map

    def __call__(self, *x: Tensor) -> Tensor:
        """First output for `[N, ...]`."""
        return self.run(x, None)[0]

    def run(self, x: Sequence[Tensor], outputs: Sequence[str] | None) -> list[Tensor]:
        """The named outputs, all of them for None."""
        if len(x) != len(self.inputs):
            raise ArtifactError(f"{self.artifact.path.name} takes {', '.join(self.inputs)}, got {len(x)} inputs")
        feed = _feed(self.inputs, x)
        try:
            found = self._session.run(outputs, feed)
        except Exception as error:
            raise ArtifactError(f"onnxruntime failed on {self.artifact.path.name}: {error}") from error
        return [torch.from_numpy(value) for value in found]

    def coverage(self) -> Coverage:
        """The graph as onnxruntime rewrote it, by the element types of what each operator reads."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "optimized.onnx"
            _session(self.artifact.path, self.artifact, True, None, optimized=path)
            model = onnx.load(path)
        types = self._types(model)
        made_by: dict[str, str] = {}
        operators = []
        for i, node in enumerate(model.graph.node):
            name = node.name or f"{node.op_type}_{i}"
            sources = tuple(made_by[value] for value in node.input if value in made_by)
            reads = {types[value] for value in node.input if value}
            operators.append(Executed(name=name, op=node.op_type, kind=_kind(node.op_type, reads), inputs=sources))
            made_by |= dict.fromkeys(node.output, name)
        return Coverage(runtime=self.name, operators=tuple(operators))

    def _types(self, model: onnx.ModelProto) -> dict[str, str]:
        """Element type of every value, as onnxruntime infers it: its own operators are no part of ONNX."""
        graph = onnx.ModelProto()
        graph.CopyFrom(model)
        known = {value.name for value in graph.graph.output}
        computed = [name for node in graph.graph.node for name in node.output if name and name not in known]
        graph.graph.output.extend(onnx.ValueInfoProto(name=name) for name in computed)
        session = _session(graph.SerializeToString(), self.artifact, False, None)
        constants = {i.name: ELEMENTS.get(i.data_type, "") for i in graph.graph.initializer}
        return constants | {value.name: value.type for value in [*session.get_inputs(), *session.get_outputs()]}

    def intermediates(self, *x: Tensor) -> dict[str, Tensor]:
        """The integers of every site, from the graph that this session runs: with its fusions where it has them."""
        return intermediate_integers(self.artifact, *x, optimize=self._optimize)


def _kind(op: str, reads: set[str]) -> Kind:
    if op in BORDERS:
        return Kind.BORDER
    if reads & EIGHT_BITS and op not in UNPACKS:
        return Kind.INTEGER
    return Kind.FLOAT if any("float" in one for one in reads) else Kind.BORDER  # sizes are int64


def intermediate_integers(artifact: Artifact, *x: Tensor, optimize: bool = False) -> dict[str, Tensor]:
    """Every value that the artefact stores as integers, by site.

    The stored file is untouched: a copy in memory gets the values as further outputs. That leaves onnxruntime's fusions
    as they are, whose results these values are.

    Args:
        artifact: an `.onnx` artefact.
        x: one batch, each input of it in the artefact's order.
        optimize: with the runtime's optimizations, as deployed, or with none.
    """
    model = onnx.load(artifact.path)
    types = {-1: onnx.TensorProto.INT8, 0: onnx.TensorProto.UINT8}
    zero_points = {i.name: i.data_type for i in model.graph.initializer}
    names = []
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            dtype = zero_points.get(node.input[2], types[0])
            model.graph.output.append(onnx.helper.make_tensor_value_info(node.output[0], dtype, None))
            names.append(node.output[0])
    session = _session(model.SerializeToString(), artifact, optimize=optimize, threads=None)
    values = session.run(names, _feed([value.name for value in session.get_inputs()], x))
    return {name.removesuffix("_quantized"): torch.from_numpy(v) for name, v in zip(names, values, strict=True)}


def _feed(names: Sequence[str], x: Sequence[Tensor]) -> dict[str, np.ndarray]:
    values = [np.ascontiguousarray(one.detach().cpu().numpy()) for one in x]
    return dict(zip(names, values, strict=True))


def _session(
    model: bytes | Path, artifact: Artifact, optimize: bool, threads: int | None, optimized: Path | None = None
) -> ort.InferenceSession:
    options = ort.SessionOptions()
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        source = str(model) if isinstance(model, Path) else model
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ArtifactError(f"onnxruntime {ort.__version__} refuses {artifact.path.name}: {error}") from error
