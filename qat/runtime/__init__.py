"""Run an artefact in its real runtime: `load(artifact)` gives a function from inputs to outputs."""

from __future__ import annotations

from qat.artifact import Artifact
from qat.errors import ConfigError
from qat.runtime.base import Runtime
from qat.runtime.onnxruntime import OnnxRuntime
from qat.runtime.torch import TorchRuntime


def load(artifact: Artifact, *, optimize: bool = True, threads: int | None = None) -> Runtime:
    """The runtime that takes this kind of file, with the file loaded.

    Args:
        artifact: from `qat.export`.
        optimize: the runtime's default optimizations; False runs the graph as it was written.
        threads: threads inside one operator; None leaves it to the runtime.

    Raises:
        ArtifactError: the runtime refuses the file; its own words are in the message.
    """
    match artifact.kind:
        case ".onnx":
            return OnnxRuntime(artifact, optimize=optimize, threads=threads)
        case ".pt2":
            return TorchRuntime(artifact)
    raise ConfigError(f"no runtime here runs {artifact.path.name!r}; known suffixes: .onnx, .pt2")


__all__ = ["OnnxRuntime", "Runtime", "TorchRuntime", "load"]
