"""AOTInductor's runtime: a package of compiled kernels, `.pt2`."""

from __future__ import annotations

import json
import re
import zipfile
from typing import Any

import torch
import torch._inductor
from torch import Tensor
from torch.utils import _pytree as pytree

from qat.artifact import Artifact
from qat.errors import ArtifactError
from qat.runtime.base import Runtime
from qat.runtime.coverage import Coverage, Executed, Kind

METADATA = "/qat.json"
INTEGER = re.compile(r"aoti_torch_cpu__(qconv\w*|qlinear\w*)\(")
FLOAT = re.compile(r"aoti_torch_cpu_(convolution|addmm_out|mm_out|bmm_out|mkldnn__convolution\w*|mkldnn__linear\w*)\(")


class InductorRuntime(Runtime):
    """A loaded package.

    Args:
        artifact: a `.pt2` package of AOTInductor.

    Raises:
        ArtifactError: the file is truncated, or was compiled for another machine or torch.
    """

    def __init__(self, artifact: Artifact) -> None:
        super().__init__(artifact)
        self.name = f"inductor {torch.__version__}"
        try:
            self._model: Any = torch._inductor.aoti_load_package(str(artifact.path))
        except Exception as error:
            raise ArtifactError(f"{self.name} refuses {artifact.path.name}: {error}") from error
        self.metadata = json.loads(self._read(METADATA) or "{}")

    @torch.no_grad()
    def __call__(self, *x: Tensor) -> Tensor:
        """First output for `[N, ...]`."""
        try:
            result = self._model(*(one.detach().cpu().contiguous() for one in x))
        except Exception as error:
            raise ArtifactError(f"{self.name} failed on {self.artifact.path.name}: {error}") from error
        return next(leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor))

    def coverage(self) -> Coverage:
        """Convolutions and linear layers that the generated code calls, oneDNN's integer ones or float ones."""
        code = self._read(".wrapper.cpp")
        operators = [Executed(name=f"call_{m.start()}", op=m[1], kind=Kind.INTEGER) for m in INTEGER.finditer(code)]
        operators += [Executed(name=f"call_{m.start()}", op=m[1], kind=Kind.FLOAT) for m in FLOAT.finditer(code)]
        return Coverage(runtime=self.name, operators=tuple(operators))

    def _read(self, ending: str) -> str:
        with zipfile.ZipFile(self.artifact.path) as package:
            return "".join(package.read(n).decode() for n in package.namelist() if n.endswith(ending))
