"""OpenVINO on the CPU: runs an IR, `.xml` beside `.bin`.

Its low-precision transformations move the pairs of quantize and dequantize into the operators between them, and run
those on u8 and i8. What is left in float is kept in float32: by default OpenVINO computes it in bfloat16 on CPUs that
have it, which moves a tenth of a linear layer's outputs by a step.
"""

from __future__ import annotations

import json

import numpy as np
import openvino
import torch
from torch import Tensor

from qat.artifact import Artifact
from qat.errors import ArtifactError
from qat.runtime.base import Runtime
from qat.runtime.coverage import Coverage, Executed, Kind

METADATA = ["qat", "metadata"]  # where the IR keeps what it says about itself
BORDERS = {"FakeQuantize", "Quantize", "Reorder", "Convert", "Reshape", "Transpose"}
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "EXECUTION_MODE_HINT": "ACCURACY"}


class OpenVINORuntime(Runtime):
    """A compiled model.

    Args:
        artifact: an `.xml` artefact.
        threads: threads inside one operator; None leaves it to OpenVINO.
        exact: compute what is left in float in float32; False leaves the precision to OpenVINO.

    Raises:
        ArtifactError: a file is missing, truncated, or holds what OpenVINO does not know.
    """

    def __init__(self, artifact: Artifact, *, threads: int | None = None, exact: bool = True) -> None:
        super().__init__(artifact)
        self.name = f"openvino {openvino.__version__.partition('-')[0]}, CPU"
        self._config = {**(EXACT if exact else {}), **({} if threads is None else {"INFERENCE_NUM_THREADS": threads})}
        self.model = self._read()
        if self.model.has_rt_info(METADATA):
            self.metadata = json.loads(self.model.get_rt_info(METADATA).value)
        self.inputs = tuple(value.get_any_name() for value in self.model.inputs)
        self.outputs = tuple(value.get_any_name() for value in self.model.outputs)
        self.compiled = self._compile(self.model)

    def __call__(self, *x: Tensor) -> Tensor:
        """First output for `[N, ...]`."""
        return self._run(self.compiled, *x)[0]

    def intermediates(self, *x: Tensor) -> dict[str, Tensor]:
        """The integers of every site that is stored, each from a model of its own with it as a further output.

        One at a time, and none inside a fused operator: a value that is asked for cannot be written over, which undoes
        the fusions of its readers, and with them what was to be seen. A convolution with a sum behind its quantizer
        does not round there, but once behind the sum.
        """
        found = {}
        for site in self._stored():
            model = self._read()
            (quantizer,) = [n for n in model.get_ops() if _is_quantizer(n) and n.get_friendly_name() == site]
            model.add_outputs([quantizer.output(0)])
            found[site] = self._integers(quantizer, self._run(self._compile(model), *x)[-1])
        return found

    def _stored(self) -> list[str]:
        """Sites that end an executed operator, in the artefact's order."""
        executed = (n.get_rt_info() for n in self.compiled.get_runtime_model().get_ordered_ops())
        ends = {str(about["originalLayersNames"].astype(str)).rpartition(",")[2] for about in executed}
        return [site for site in self.artifact.sites if site in ends]

    def coverage(self) -> Coverage:
        """The executed graph with the precision of every node; constants and the model's ends left out."""
        operators = []
        for node in self.compiled.get_runtime_model().get_ordered_ops():
            about = node.get_rt_info()
            kind, precision = (str(about[key].astype(str)) for key in ("layerType", "runtimePrecision"))
            if kind in ("Const", "Input", "Output"):
                continue
            sources = tuple(value.get_node().get_friendly_name() for value in node.input_values())
            on = Kind.BORDER if kind in BORDERS else Kind.INTEGER if precision in ("u8", "i8") else Kind.FLOAT
            operators.append(Executed(name=node.get_friendly_name(), op=kind, kind=on, inputs=sources))
        return Coverage(runtime=self.name, operators=tuple(operators))

    def _integers(self, quantizer: openvino.Node, values: Tensor) -> Tensor:
        """`values` of a FakeQuantize back on its grid: its lowest integer stands for the lower end of its output."""
        levels = int(quantizer.get_attributes()["levels"])
        low, high = (float(quantizer.input_value(i).get_node().data.item()) for i in (3, 4))
        target = self.artifact.target
        lowest = -(levels // 2) if target is not None and target.activation_signed else 0
        return ((values - low) * ((levels - 1) / (high - low))).round().int() + lowest

    def _read(self) -> openvino.Model:
        if self.artifact.path.is_file() and not self.artifact.path.read_bytes()[:64].lstrip().startswith(b"<"):
            raise self._refused("it is no XML, so no IR; OpenVINO would take an ONNX file under that name")
        try:
            return openvino.Core().read_model(self.artifact.path)
        except Exception as error:
            raise self._refused(error) from error

    def _compile(self, model: openvino.Model) -> openvino.CompiledModel:
        try:
            return openvino.Core().compile_model(model, "CPU", self._config)
        except Exception as error:
            raise self._refused(error) from error

    def _run(self, compiled: openvino.CompiledModel, *x: Tensor) -> list[Tensor]:
        try:
            found = compiled([np.ascontiguousarray(one.detach().cpu().numpy()) for one in x])
        except Exception as error:
            raise ArtifactError(f"openvino failed on {self.artifact.path.name}: {error}") from error
        return [torch.from_numpy(found[i].copy()) for i in range(len(compiled.outputs))]

    def _refused(self, error: Exception | str) -> ArtifactError:
        return ArtifactError(f"openvino {openvino.__version__} refuses {self.artifact.path.name}: {error}")


def _is_quantizer(node: openvino.Node) -> bool:
    return node.get_type_name() == "FakeQuantize"
