"""TensorRT on an NVIDIA GPU: builds an engine from the ONNX file of `target=tensorrt`, and runs it.

    from qat.runtime.tensorrt import TensorRTRuntime
    qat.verify(prepared, artifact, batches, runtimes=[TensorRTRuntime(artifact)])

`load` runs that file in onnxruntime, on any machine. The engine is built here and now, for this GPU: minutes for a
large model. Written to the API of TensorRT 10, strongly typed: precisions are those of the graph.
"""

from __future__ import annotations

import importlib
import json
from typing import Any

import torch
from torch import Tensor

from qat.artifact import Artifact
from qat.errors import ArtifactError, ConfigError
from qat.runtime.base import Runtime
from qat.runtime.coverage import Coverage, Executed, Kind

LARGEST = 128  # examples in a batch
BORDERS = ("Reformat", "NoOp", "Quantize", "Dequantize")


class TensorRTRuntime(Runtime):
    """An engine.

    Args:
        artifact: an `.onnx` artefact of `target=tensorrt`.
        largest: most examples in a batch.

    Raises:
        ConfigError: TensorRT is not installed, or torch sees no GPU.
        ArtifactError: TensorRT refuses the graph; its own words are in the message.
    """

    def __init__(self, artifact: Artifact, *, largest: int = LARGEST) -> None:
        super().__init__(artifact)
        trt = _tensorrt()
        self.name = f"tensorrt {trt.__version__}, {torch.cuda.get_device_name()}"
        self._trt, self._logger = trt, trt.Logger(trt.Logger.ERROR)
        plan = self._build(artifact.path.read_bytes(), largest)
        self._engine: Any = trt.Runtime(self._logger).deserialize_cuda_engine(plan)
        self._context: Any = self._engine.create_execution_context()
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        reads = {name: self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT for name in names}
        self.inputs = tuple(name for name in names if reads[name])
        self.outputs = tuple(name for name in names if not reads[name])

    @torch.no_grad()
    def __call__(self, *x: Tensor) -> Tensor:
        """First output for `[N, ...]`."""
        held = [one.detach().float().cuda().contiguous() for one in x]  # addresses must outlive the call
        for name, value in zip(self.inputs, held, strict=True):
            if not self._context.set_input_shape(name, tuple(value.shape)):
                raise self._failed(f"it does not take {name} of shape {tuple(value.shape)}")
            self._context.set_tensor_address(name, value.data_ptr())
        found = {name: torch.empty(tuple(self._context.get_tensor_shape(name)), device="cuda") for name in self.outputs}
        for name, value in found.items():
            self._context.set_tensor_address(name, value.data_ptr())
        stream = torch.cuda.current_stream()
        if not self._context.execute_async_v3(stream.cuda_stream):
            raise self._failed("the engine did not run; its log on stderr says why")
        stream.synchronize()
        return found[self.outputs[0]].cpu()

    def coverage(self) -> Coverage:
        """The engine's layers, by the element type of what each reads."""
        inspector = self._engine.create_engine_inspector()
        text = inspector.get_engine_information(self._trt.LayerInformationFormat.JSON)
        return Coverage(runtime=self.name, operators=executed(json.loads(text)["Layers"]))

    def _build(self, content: bytes, largest: int) -> Any:
        trt = self._trt
        builder = trt.Builder(self._logger)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, self._logger)
        if not parser.parse(content):
            errors = "; ".join(str(parser.get_error(i).desc()) for i in range(parser.num_errors))
            raise ArtifactError(f"{self.name} refuses {self.artifact.path.name}: {errors}")
        config, profile = builder.create_builder_config(), builder.create_optimization_profile()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # or the inspector shows names alone
        for i in range(network.num_inputs):
            value = network.get_input(i)
            rest = tuple(value.shape)[1:]
            profile.set_shape(value.name, (1, *rest), (min(8, largest), *rest), (largest, *rest))
        config.add_optimization_profile(profile)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise ArtifactError(f"{self.name} builds no engine from {self.artifact.path.name}; its log says why")
        return plan

    def _failed(self, why: str) -> ArtifactError:
        return ArtifactError(f"{self.name} failed on {self.artifact.path.name}: {why}")


def executed(layers: list[dict[str, Any]]) -> tuple[Executed, ...]:
    """Layers of the engine inspector's JSON."""
    made_by: dict[str, str] = {}
    found = []
    for layer in layers:
        sources = tuple(made_by[v["Name"]] for v in layer["Inputs"] if v["Name"] in made_by)
        integers = any(str(v.get("Format/Datatype", "")).startswith("Int8") for v in layer["Inputs"])
        kind = Kind.BORDER if layer["LayerType"] in BORDERS else Kind.INTEGER if integers else Kind.FLOAT
        found.append(Executed(name=layer["Name"], op=layer["LayerType"], kind=kind, inputs=sources))
        made_by |= {v["Name"]: layer["Name"] for v in layer["Outputs"]}
    return tuple(found)


def _tensorrt() -> Any:
    try:
        found = importlib.import_module("tensorrt")
    except ImportError as error:
        raise ConfigError(
            "TensorRT is not installed: `pip install tensorrt` on a machine with an NVIDIA GPU. Elsewhere "
            f"target=tensorrt is checked by its rules and in onnxruntime ({error})"
        ) from error
    if not torch.cuda.is_available():
        raise ConfigError("TensorRT needs an NVIDIA GPU, and torch sees none; qat.runtime.load runs it on the CPU")
    return found
