"""ExecuTorch's runtime, with the XNNPACK backend: runs a `.pte` program."""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import torch
from executorch.exir._serialize._program import deserialize_pte_binary
from executorch.exir.schema import DelegateCall, KernelCall
from executorch.runtime import Runtime as Loader
from executorch.runtime import Verification
from torch import Tensor

from qat.artifact import Artifact
from qat.errors import ArtifactError
from qat.runtime.base import Runtime
from qat.runtime.coverage import Coverage, Executed, Kind

METADATA = "qat_metadata"  # the constant method that says what the file is


class ExecuTorchRuntime(Runtime):
    """A loaded program.

    Args:
        artifact: a `.pte` artefact.

    Raises:
        ArtifactError: the file is missing, truncated, or holds what this build of the runtime does not know.
    """

    def __init__(self, artifact: Artifact) -> None:
        super().__init__(artifact)
        self.name = f"executorch {version('executorch')}, XNNPACK"
        try:
            # its own check walks the whole file: without it a truncated one is read beyond its end
            self._program: Any = Loader.get().load_program(artifact.path, verification=Verification.InternalConsistency)
            self._forward: Any = self._program.load_method("forward")
        except Exception as error:
            raise ArtifactError(f"{self.name} refuses {artifact.path.name}: {error}") from error
        if METADATA in self._program.method_names:
            (text,) = self._program.load_method(METADATA).execute([])
            self.metadata = json.loads(bytes(text.tolist()).decode())

    @torch.no_grad()
    def __call__(self, *x: Tensor) -> Tensor:
        """First output for `[N, ...]`."""
        try:
            found = self._forward.execute([one.detach().cpu().contiguous() for one in x])
        except Exception as error:
            raise ArtifactError(f"{self.name} failed on {self.artifact.path.name}: {error}") from error
        return found[0].clone()  # the program's own memory, overwritten by the next call

    def coverage(self) -> Coverage:
        """Delegate calls, and the kernels that were left outside them. What XNNPACK runs inside, it does not tell."""
        program = deserialize_pte_binary(self.artifact.path.read_bytes()).program
        plan = next(p for p in program.execution_plan if p.name == "forward")
        calls = [i.instr_args for chain in plan.chains for i in chain.instructions]
        delegates = [c for c in calls if isinstance(c, DelegateCall)]
        operators = [
            Executed(name=f"call_{i}", op=plan.delegates[c.delegate_index].id, kind=Kind.INTEGER)
            for i, c in enumerate(delegates)
        ]
        for i, call in enumerate(c for c in calls if isinstance(c, KernelCall)):
            operators.append(Executed(name=f"kernel_{i}", op=plan.operators[call.op_index].name, kind=Kind.FLOAT))
        return Coverage(runtime=self.name, operators=tuple(operators), delegates=len(delegates))
