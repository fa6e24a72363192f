"""What all artefacts share: torch.export with a dynamic batch dimension before, what the file is called after."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind, TensorArgument

from qat.artifact import Artifact
from qat.errors import ExportError
from qat.export.copies import with_same_tensors


def export_program(
    model: nn.Module, example_inputs: tuple[Any, ...], *, max_batch: int | None = None
) -> ExportedProgram:
    """An exported program on the CPU whose first dimension is free.

    Args:
        model: a model in evaluation mode; untouched.
        example_inputs: at least two examples each, `[N, ...]`: a batch of one would be taken for a constant.
        max_batch: the largest batch, for a runtime that must know one.

    Raises:
        ExportError: torch.export cannot follow the model, or the batch size is baked into it.
    """
    on_cpu = all(tensor.is_cpu for tensor in [*model.parameters(), *model.buffers()])
    model = (with_same_tensors(model) if on_cpu else copy.deepcopy(model).cpu()).eval()
    inputs = tuple(x.detach().cpu() if isinstance(x, Tensor) else x for x in example_inputs)
    batch = Dim.DYNAMIC if max_batch is None else Dim("batch", max=max_batch)
    if max_batch is not None:
        # torch asks a convolution's batch whether it is below 16, and takes the answer for this one as a bound for all
        inputs = tuple(x.repeat(16, *[1] * (x.ndim - 1)) if isinstance(x, Tensor) and x.ndim else x for x in inputs)
    shapes = tuple({0: batch} if isinstance(x, Tensor) and x.ndim else None for x in inputs)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # nn.LSTM and nn.GRU keep a list of their parameters, which are parameters all the same
            warnings.filterwarnings("ignore", message=".*_flat_weights.* were assigned during export")
            warnings.filterwarnings("ignore", message="_check_is_size will be removed")  # torch's own call of it
            return torch.export.export(model, inputs, dynamic_shapes=shapes)
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise ExportError(
            f"torch.export cannot follow the model with a free batch size: {reason}. "
            "Use x.shape[0] or -1 instead of a number for the batch; `torch.export.draft_export` shows the line"
        ) from error


def input_names(program: ExportedProgram) -> list[str]:
    """Names of the tensors among the inputs, as the model's forward has them; numbers are constants of the file."""
    specs = program.graph_signature.input_specs
    return [s.arg.name for s in specs if s.kind is InputKind.USER_INPUT and isinstance(s.arg, TensorArgument)]


def output_names(program: ExportedProgram) -> list[str]:
    """`output`, or `output_0`, `output_1`, ... for a model with several."""
    count = len(program.graph_signature.user_outputs)
    return ["output"] if count == 1 else [f"output_{i}" for i in range(count)]


def artifact_of(program: ExportedProgram, path: Path, about: Mapping[str, Any]) -> Artifact:
    """The file that a program was written to; `about` is what `convert` knows of the model."""
    return Artifact(
        path=path,
        target=about.get("target"),
        inputs=tuple(input_names(program)),
        outputs=tuple(output_names(program)),
        sites=tuple(about.get("sites", ())),
    )
