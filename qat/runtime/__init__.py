"""Run an artefact in its real runtime: `load(artifact)` gives a function from inputs to outputs.

A runtime's module is imported when an artefact needs it: some take seconds, and some are extras that may be missing.
"""

from __future__ import annotations

import importlib
import zipfile
from types import ModuleType

from qat.artifact import Artifact
from qat.errors import ArtifactError, ConfigError
from qat.runtime.base import Runtime
from qat.runtime.onnxruntime import OnnxRuntime
from qat.runtime.torch import TorchRuntime
from qat.target import Target

SUFFIXES = {".onnx": "onnxruntime", ".pt2": "torch", ".xml": "openvino", ".pte": "executorch"}
EXTRAS = {"openvino": "openvino", "executorch": "executorch", "inductor": "torchao"}  # extra: the package it brings


def load(artifact: Artifact, *, optimize: bool = True, threads: int | None = None) -> Runtime:
    """The runtime that takes this kind of file, with the file loaded.

    Args:
        artifact: from `qat.export`.
        optimize: the runtime's default optimizations; False runs the graph as it was written (onnxruntime alone).
        threads: threads inside one operator; None leaves it to the runtime.

    Raises:
        ArtifactError: the runtime refuses the file, its own words are in the message; or the file was exported for
            another target or from another model than `artifact` says.
        ConfigError: the runtime's package is not installed; no `Artifact`.
    """
    if not isinstance(artifact, Artifact):
        raise ConfigError(
            f"need the Artifact that qat.export returns, or qat.Artifact(path=..., target=...), got {artifact!r}"
        )
    match _runtime_of(artifact):
        case "onnxruntime":
            runtime: Runtime = OnnxRuntime(artifact, optimize=optimize, threads=threads)
        case "torch":
            runtime = TorchRuntime(artifact)
        case "openvino":
            runtime = runtime_module("openvino").OpenVINORuntime(artifact, threads=threads)
        case "inductor":
            runtime = runtime_module("inductor").InductorRuntime(artifact)
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


def require_installed(target: Target, suffix: str = "") -> None:
    """Raise `ConfigError` when a package is missing that `target` needs, or a file of this suffix, or a compiler.

    To be asked before training.
    """
    for runtime in (target.runtime, SUFFIXES.get(suffix, "")):
        if runtime in EXTRAS:
            _needing(runtime, EXTRAS[runtime])
    if target.runtime == "inductor":
        try:
            importlib.import_module("torch._inductor.cpp_builder").get_cpp_compiler()
        except RuntimeError as error:  # InvalidCxxCompiler
            raise ConfigError(
                f"target inductor compiles C++, and there is no compiler: {error}. Install g++ or set CXX, or use "
                "target=torch"
            ) from error


def _needing(extra: str, module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"target {extra} needs the package `{EXTRAS[extra]}`: run `uv sync --extra {extra}` or "
            f"`pip install {EXTRAS[extra]}` ({error})"
        ) from error


def _runtime_of(artifact: Artifact) -> str:
    if artifact.kind not in SUFFIXES:
        raise ConfigError(f"no runtime here runs {artifact.path.name!r}; known suffixes: {', '.join(SUFFIXES)}")
    return "inductor" if artifact.kind == ".pt2" and _is_compiled(artifact) else SUFFIXES[artifact.kind]


def _is_compiled(artifact: Artifact) -> bool:
    """Whether a `.pt2` holds AOTInductor's kernels instead of an exported program."""
    try:
        with zipfile.ZipFile(artifact.path) as package:
            return any("/aotinductor/" in name for name in package.namelist())
    except (OSError, zipfile.BadZipFile):
        return artifact.target is not None and artifact.target.runtime == "inductor"


def _require_same(artifact: Artifact, runtime: Runtime) -> None:
    for key, what in (("target", "for target"), ("model", "from model"), ("fingerprint", "from weights")):
        said, found = artifact.metadata.get(key), runtime.metadata.get(key)
        if said is not None and found is not None and said != found:
            raise ArtifactError(
                f"{artifact.path.name} was exported {what} {found}, not {said}: another export wrote over it. "
                "Export the model again"
            )


__all__ = ["OnnxRuntime", "Runtime", "TorchRuntime", "load", "require_installed", "runtime_module"]
