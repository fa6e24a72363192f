"""AOTInductor's runtime: a package of compiled kernels, `.pt2`."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Sequence
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
CALL = re.compile(
    r"^ +(?:AOTI_TORCH_ERROR_CODE_CHECK\()?(aoti_torch_cpu_\w+|aoti_torch_proxy_\w+|cpp_fused\w*)\(", re.M
)
DISPATCHER, DISPATCHED = "aoti_torch_proxy_executor_call_function", re.compile(r"\(proxy_executor, (\d+),")
BUFFER = re.compile(r"\bbuf\d+")
INTEGER = ("aoti_torch_cpu__qconv", "aoti_torch_cpu__qlinear", "quantized::")
# in a generated kernel's name, which lists what it computes
MOVES = re.compile(
    "dequantize_per_(tensor|channel)|quantize_per_tensor|transpose|permute|(un)?squeeze|expand|clone|view|slice|select|"
    "cat|constant_pad_nd|split(_with_sizes)?|flip"
)


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
        """Every kernel that the generated code calls."""
        calls = json.loads(self._read(".wrapper.json") or '{"nodes": []}')["nodes"]
        return Coverage(
            runtime=self.name,
            operators=executed(self._read(".wrapper.cpp"), [call["node"]["target"] for call in calls]),
        )

    def _read(self, ending: str) -> str:
        with zipfile.ZipFile(self.artifact.path) as package:
            return "".join(package.read(n).decode() for n in package.namelist() if n.endswith(ending))


def executed(code: str, dispatched: Sequence[str]) -> tuple[Executed, ...]:
    """The calls in a wrapper's code, one behind the other.

    oneDNN's `qconv` and `qlinear` compute on integers, and so do torch's `quantized` operators, which the code reaches
    through the dispatcher. A kernel that Inductor generated computes in float: it dequantizes what it reads, and is
    nothing but a border where it only quantizes and moves. Two calls are joined when they name the same buffer.

    Args:
        code: C++.
        dispatched: operators that are called through the dispatcher, by their index in the code.
    """
    operators: list[Executed] = []
    last: dict[str, str] = {}  # buffer: the last call that named it
    for match in CALL.finditer(code):
        line = code[match.start() : code.find("\n", match.start())]
        op = match[1]
        if op == DISPATCHER:
            index = DISPATCHED.search(line)
            assert index is not None, line
            op = dispatched[int(index[1])]
        name, buffers = f"call_{len(operators)}", dict.fromkeys(BUFFER.findall(line))
        sources = dict.fromkeys(last[buffer] for buffer in buffers if buffer in last)
        operators.append(Executed(name=name, op=op, kind=_kind(op), inputs=tuple(sources)))
        last |= dict.fromkeys(buffers, name)
    return tuple(operators)


def _kind(op: str) -> Kind:
    if op.startswith(INTEGER):
        return Kind.INTEGER
    if not op.startswith("cpp_fused"):
        return Kind.FLOAT
    computed = MOVES.sub("", op.removeprefix("cpp_fused").rstrip("0123456789"))
    return Kind.FLOAT if computed.strip("_") else Kind.BORDER
