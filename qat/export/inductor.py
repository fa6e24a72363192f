"""`.pt2` package by AOTInductor: the integer model as compiled kernels, with oneDNN's integer convolutions.

Inductor computes a dequantize / convolution / quantize chain in float unless the pairs are fused into the convolution.
torch 2.15 leaves that fusion to torchao (`inductor_passes.x86`), and runs it when weights are frozen into constants.
"""

from __future__ import annotations

import json
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch._inductor.config
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler
from torch.export import ExportedProgram
from torchao.quantization.pt2e.inductor_passes import x86

from qat.artifact import Artifact
from qat.errors import ExportError
from qat.export.program import artifact_of
from qat.export.quiet import quiet
from qat.files import replacing

METADATA = "qat.json"  # a file in the package
# without tables of line numbers for debuggers, two thirds of the compiled code
CONFIG = {"freezing": True, "aot_inductor.enable_line_tables": False}


def write_inductor(program: ExportedProgram, path: Path, about: Mapping[str, Any]) -> Artifact:
    """Compile and save; `about` is what `convert` knows of the model."""
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise ExportError(
            f"target inductor compiles C++ and found no compiler: {error}. Install g++ or set CXX, or use target=torch"
        ) from error
    with replacing(path) as temporary, tempfile.TemporaryDirectory() as folder:
        compiled = Path(folder) / path.name
        _compile(program, compiled)
        _pack(compiled, temporary, json.dumps(about.get("metadata", {})))
    return artifact_of(program, path, about)


def _pack(compiled: Path, path: Path, metadata: str) -> None:
    """The package deflated, with what it says about itself: torch stores code and weights as they are."""
    with (
        zipfile.ZipFile(compiled) as package,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as packed,
    ):
        for name in package.namelist():
            packed.writestr(name, package.read(name))
        root = package.namelist()[0].partition("/")[0]
        packed.writestr(f"{root}/{METADATA}", metadata)


def _compile(program: ExportedProgram, path: Path) -> None:
    try:
        with quiet(), torch.no_grad(), torch._inductor.config.patch(CONFIG):
            x86._register_quantization_weight_pack_pass()
            torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    except Exception as error:
        raise ExportError(
            f"Inductor cannot compile the model: {str(error).strip().splitlines()[0]}. target=torch runs it eagerly"
        ) from error
