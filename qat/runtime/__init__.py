"""Run an artefact in its real runtime: `load(artifact)` gives a function from inputs to outputs.

A runtime's module is imported when an artefact needs it: some take seconds, and some are extras that may be missing.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from qat.artifact import Artifact
from qat.errors import ArtifactError, ConfigError
from qat.runtime.base import Runtime
from qat.runtime.onnxruntime import OnnxRuntime
from qat.runtime.torch import TorchRuntime
from qat.target import Target

SUFFIXES = {".onnx": "onnxruntime", ".pt2": "torch", ".xml": "openvino", ".pte": "executorch"}
EXTRAS = ("openvino", "executorch")  # packages that are not installed by default; the extra has the package's name


def load(artifact: Artifact, *, optimize: bool = True, threads: int | None = None) -> Runtime:
    """The runtime that takes this kind of file, with the file loaded.

    Args:
        artifact: from `qat.export`.
        optimize: the runtime's default optimizations; False runs the graph as it was written (onnxruntime alone).
        threads: threads inside one operator; None leaves it to the runtime.

    Raises:
        ArtifactError: the runtime refuses the file, its own words are in the message; or the file was exported for
            another target or from another model than `artifact` says.
        ConfigError: the runtime's package is not installed.
    """
    match _runtime_of(artifact):
        case "onnxruntime":
            runtime: Runtime = OnnxRuntime(artifact, optimize=optimize, threads=threads)
        case "torch":
            runtime = TorchRuntime(artifact)
        case "openvino":
            runtime = runtime_module("openvino").OpenVINORuntime(artifact, threads=threads)
        case "executorch":
            runtime = runtime_module("executorch").ExecuTorchRuntime(artifact)
    _require_same(artifact, runtime)
    return runtime


def runtime_module(name: str) -> ModuleType:
    """The module `qat.runtime.<name>`.

    Raises:
        ConfigError: the package it runs on is not installed; names the extra.
    """
    return _needing(name, f"qat.runtime.{name}")


def require_installed(target: Target) -> None:
    """Raise `ConfigError` naming the extra when the package that `target` needs is missing; ask before training."""
    if target.runtime in EXTRAS:
        _needing(target.runtime, target.runtime)


def _needing(package: str, module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"target {package} needs the package `{package}`: run `uv sync --extra {package}` or "
            f"`pip install 'qat[{package}]'` ({error})"
        ) from error


def _runtime_of(artifact: Artifact) -> str:
    if artifact.kind not in SUFFIXES:
        raise ConfigError(f"no runtime here runs {artifact.path.name!r}; known suffixes: {', '.join(SUFFIXES)}")
    return SUFFIXES[artifact.kind]


def _require_same(artifact: Artifact, runtime: Runtime) -> None:
    for key, what in (("target", "for target"), ("model", "from model"), ("fingerprint", "from weights")):
        said, found = artifact.metadata.get(key), runtime.metadata.get(key)
        if said is not None and found is not None and said != found:
            raise ArtifactError(
                f"{artifact.path.name} was exported {what} {found}, not {said}: another export wrote over it. "
                "Export the model again"
            )


__all__ = ["OnnxRuntime", "Runtime", "TorchRuntime", "load", "require_installed", "runtime_module"]
