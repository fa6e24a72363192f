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
        self.name = f"onnxruntime {ort.__version__}, optimizations {'on' if optimize else 'off'}"
        self._session = _session(artifact.path.read_bytes(), artifact, optimize, threads)
        self.inputs = tuple(value.name for value in self._session.get_inputs())
        self.outputs = tuple(value.name for value in self._session.get_outputs())
        self.metadata = self._session.get_modelmeta().custom_metadata_map

    def __call__(self, *x: Tensor) -> Tensor:
        """First output for `[N, ...]`."""
        return self.run(x, None)[0]

    def run(self, x: Sequence[Tensor], outputs: Sequence[str] | None) -> list[Tensor]:
        """The named outputs, all of them for None."""
        try:
            found = self._session.run(outputs, _feed(self.inputs, x))
        except Exception as error:
            raise ArtifactError(f"onnxruntime failed on {self.artifact.path.name}: {error}") from error
        return [torch.from_numpy(value) for value in found]

    def coverage(self) -> Coverage:
        """The graph as onnxruntime rewrote it: an operator runs on integers when a quantized value reaches it."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "optimized.onnx"
            _session(self.artifact.path.read_bytes(), self.artifact, True, None, optimized=path)
            graph = onnx.load(path).graph
        made_by: dict[str, str] = {}
        on_integers: set[str] = set()
        operators = []
        for i, node in enumerate(graph.node):
            name = node.name or f"{node.op_type}_{i}"
            kind = Kind.FLOAT
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                kind = Kind.BORDER
            elif any(value in on_integers for value in node.input):
                kind = Kind.INTEGER
            if kind is Kind.INTEGER or node.op_type == "QuantizeLinear":
                on_integers.update(node.output)
            sources = tuple(made_by[value] for value in node.input if value in made_by)
            operators.append(Executed(name=name, op=node.op_type, kind=kind, inputs=sources))
            made_by |= dict.fromkeys(node.output, name)
        return Coverage(runtime=self.name, operators=tuple(operators))

    def intermediates(self, *x: Tensor) -> dict[str, Tensor]:
        """The integers of every site, with optimizations off: fused operators do not show them."""
        return intermediate_integers(self.artifact, *x)


def intermediate_integers(artifact: Artifact, *x: Tensor) -> dict[str, Tensor]:
    """Every value that the artefact stores as integers, by site, with optimizations off.

    The stored file is untouched: a copy in memory gets the values as further outputs.
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
    session = _session(model.SerializeToString(), artifact, optimize=False, threads=None)
    values = session.run(names, _feed([value.name for value in session.get_inputs()], x))
    return {name.removesuffix("_quantized"): torch.from_numpy(v) for name, v in zip(names, values, strict=True)}


def _feed(names: Sequence[str], x: Sequence[Tensor]) -> dict[str, np.ndarray]:
    values = [np.ascontiguousarray(one.detach().cpu().numpy()) for one in x]
    return dict(zip(names, values, strict=True))


def _session(
    model: bytes, artifact: Artifact, optimize: bool, threads: int | None, optimized: Path | None = None
) -> ort.InferenceSession:
    options = ort.SessionOptions()
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ArtifactError(f"onnxruntime {ort.__version__} refuses {artifact.path.name}: {error}") from error
