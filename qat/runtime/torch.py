"""torch itself: runs a `.pt2` exported program."""

from __future__ import annotations

from typing import Any

import torch
import torch.ao.quantization.fx._decomposed
from torch import Tensor

from qat.artifact import Artifact
from qat.errors import ArtifactError
from qat.runtime.base import Runtime


class TorchRuntime(Runtime):
    """An exported program, run eagerly.

    Raises:
        ArtifactError: the file is missing or truncated, or names operators that this torch does not know.
    """

    def __init__(self, artifact: Artifact) -> None:
        super().__init__(artifact)
        self.name = f"torch {torch.__version__}"
        try:
            self._module: Any = torch.export.load(artifact.path).module()
        except Exception as error:
            raise ArtifactError(f"torch {torch.__version__} refuses {artifact.path.name}: {error}") from error

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """First output for `[N, ...]`."""
        try:
            result = self._module(x.detach().cpu())
        except Exception as error:
            raise ArtifactError(f"torch failed on {self.artifact.path.name}: {error}") from error
        return result if isinstance(result, Tensor) else next(iter(result))
