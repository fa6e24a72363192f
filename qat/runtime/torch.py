"""torch itself: runs a `.pt2` exported program."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed
from torch import Tensor, fx
from torch.export.graph_signature import InputKind, TensorArgument
from torch.utils import _pytree as pytree

from qat.artifact import Artifact
from qat.errors import ArtifactError
from qat.runtime.base import Runtime

QUANTIZE = torch.ops.quantized_decomposed.quantize_per_tensor.default
METADATA = "qat.json"  # the file inside the package


class TorchRuntime(Runtime):
    """An exported program, run eagerly.

    Raises:
        ArtifactError: the file is missing or truncated, or names operators that this torch does not know.
    """

    def __init__(self, artifact: Artifact) -> None:
        super().__init__(artifact)
        self.name = f"torch {torch.__version__}"
        extra = {METADATA: ""}
        try:
            with _silent("torch.export"):  # its traceback of an error that is raised as well
                program = torch.export.load(artifact.path, extra_files=extra)
            self._module: Any = program.module()
        except Exception as error:
            raise ArtifactError(f"torch {torch.__version__} refuses {artifact.path.name}: {error}") from error
        self.metadata = json.loads(extra[METADATA] or "{}")
        self.inputs = tuple(
            s.arg.name
            for s in program.graph_signature.input_specs
            if s.kind is InputKind.USER_INPUT and isinstance(s.arg, TensorArgument)
        )

    @torch.no_grad()
    def __call__(self, *x: Tensor) -> Tensor:
        """First output for `[N, ...]`."""
        try:
            result = self._module(*(one.detach().cpu() for one in x))
        except Exception as error:
            raise ArtifactError(f"torch failed on {self.artifact.path.name}: {error}") from error
        return next(leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor))

    @torch.no_grad()
    def intermediates(self, *x: Tensor) -> dict[str, Tensor]:
        """The integers of every site."""
        recorder = _Integers(self._module)
        recorder.run(*(one.detach().cpu() for one in x))
        return dict(zip(self.artifact.sites, recorder.seen, strict=True))


@contextmanager
def _silent(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    logger.disabled, before = True, logger.disabled
    try:
        yield
    finally:
        logger.disabled = before


class _Integers(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.seen: list[Tensor] = []

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.target is QUANTIZE:
            self.seen.append(value)
        return value
