"""ExecuTorch's runtime, with the XNNPACK backend: runs a `.pte` program."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
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
from qat.runtime.xnnpack import BACKEND, read_delegate

METADATA = "qat_metadata"  # the constant method that says what the file is
CODE = re.compile(r"0x:?([0-9a-fA-F]+)")  # "error: 0x:1" where a method is loaded
ERRORS = {  # executorch/runtime/core/error.h
    0x01: "an internal error",
    0x02: "called in a state that does not allow it",
    0x10: "an operation that is not supported",
    0x11: "an operation that is not implemented",
    0x12: "an argument that it does not take",
    0x13: "a type that it does not take",
    0x14: "an operator that this build lacks",
    0x20: "something is not there",
    0x21: "no memory",
    0x22: "a file that it cannot read",
    0x23: "no valid program",
    0x24: "no valid data beside the program",
    0x30: "a delegate of another version",
    0x31: "no memory for a delegate",
    0x32: "no valid delegate",
}


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
            raise ArtifactError(f"{self.name} refuses {artifact.path.name}: {_in_words(error)}") from error
        about = self._program.metadata("forward")
        sizes = about.input_tensor_meta(0).sizes() if about.num_inputs() else ()
        self._most = sizes[0] if sizes else 1  # examples in a call
        if METADATA in self._program.method_names:
            (text,) = self._program.load_method(METADATA).execute([])
            self.metadata = json.loads(bytes(text.tolist()).decode())

    @torch.no_grad()
    def __call__(self, *x: Tensor) -> Tensor:
        """First output for `[N, ...]`; of more examples than the program takes, in parts."""
        most = self._most
        if x and x[0].dim() and len(x[0]) > most > 1 and all(one.dim() and len(one) == len(x[0]) for one in x):
            return torch.cat([self(*part) for part in zip(*(one.split(most) for one in x), strict=True)])
        try:
            found = self._forward.execute([one.detach().cpu().contiguous() for one in x])
        except Exception as error:
            given = ", ".join(str(tuple(one.shape)) for one in x)
            raise ArtifactError(
                f"{self.name} failed on {self.artifact.path.name}: {_in_words(error)}; given {given}, it takes "
                f"{self._takes()}"
            ) from error
        return found[0].clone()  # the program's own memory, overwritten by the next call

    def _takes(self) -> str:
        """Sizes of the inputs as text; a dynamic batch stands there with its largest size."""
        about = self._program.metadata("forward")
        sizes = [tuple(about.input_tensor_meta(i).sizes()) for i in range(about.num_inputs())]
        return f"{', '.join(map(str, sizes))} at most"

    def coverage(self) -> Coverage:
        """The operators inside each delegate call, and the kernels that were left outside them."""
        program = deserialize_pte_binary(self.artifact.path.read_bytes()).program
        plan = next(p for p in program.execution_plan if p.name == "forward")
        calls = [i.instr_args for chain in plan.chains for i in chain.instructions]
        operators: list[Executed] = []
        made_by: dict[int, str] = {}
        delegates = 0
        for i, call in enumerate(calls):
            if isinstance(call, DelegateCall):
                delegates += 1
                handed = plan.delegates[call.delegate_index]
                payload = bytes(program.backend_delegate_data[handed.processed.index].data)
                operators += _inside(handed.id, payload, call.args, made_by, f"call_{i}")
            elif isinstance(call, KernelCall):
                *reads, written = call.args  # kernels write into their last argument
                sources = tuple(made_by[value] for value in reads if value in made_by)
                op = plan.operators[call.op_index].name
                operators.append(Executed(name=f"kernel_{i}", op=op, kind=Kind.FLOAT, inputs=sources))
                made_by[written] = f"kernel_{i}"
        return Coverage(runtime=self.name, operators=tuple(operators), delegates=delegates)


def _in_words(error: Exception) -> str:
    """The runtime's message; of an error it gives the number alone, and writes the rest to stderr."""
    text = str(error).strip()
    code = CODE.search(text)
    name = ERRORS.get(int(code[1], 16)) if code else None
    return f"{text} ({name})" if name else text


def _inside(
    backend: str, payload: bytes, values: Sequence[int], made_by: dict[int, str], name: str
) -> tuple[Executed, ...]:
    """Operators of a delegate call, joined to those that made its inputs; `made_by` learns of its outputs."""
    if backend != BACKEND:  # it does not tell; what it does not tell is not counted as integers
        return (Executed(name=name, op=backend, kind=Kind.FLOAT, inputs=tuple(made_by.get(v, "") for v in values)),)
    delegate = read_delegate(payload, f"{name}.")
    outside: dict[str, list[str]] = {}
    for value, readers in zip(values, delegate.inputs, strict=False):
        for reader in readers:
            outside.setdefault(reader, []).extend([made_by[value]] if value in made_by else [])
    made_by.update(zip(values[len(delegate.inputs) :], delegate.outputs, strict=True))
    return tuple(replace(o, inputs=(*o.inputs, *outside.get(o.name, ()))) for o in delegate.operators)
