"""`.pte`: an ExecuTorch program whose operators are handed to XNNPACK.

What the file says about itself is a constant method beside `forward`, its text as bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge_transform_and_lower
from executorch.exir.passes import MemoryPlanningPass
from executorch.exir.passes.sym_shape_eval_pass import ConstraintBasedSymShapeEvalPass
from torch.export import ExportedProgram

from qat.artifact import Artifact
from qat.errors import ExportError
from qat.export.program import artifact_of
from qat.export.quiet import quiet
from qat.files import replacing

METADATA = "qat_metadata"  # the constant method


def write_executorch(program: ExportedProgram, path: Path, about: Mapping[str, Any]) -> Artifact:
    """Lower to XNNPACK and save; `about` is what `convert` knows of the model."""
    metadata = json.dumps(about.get("metadata", {})).encode()
    _drop_empty_padding(program)
    try:
        with quiet():
            lowered = to_edge_transform_and_lower(
                program,
                partitioner=[XnnpackPartitioner()],
                compile_config=EdgeCompileConfig(_check_ir_validity=False),  # it does not know quantized operators
                constant_methods={METADATA: torch.tensor(list(metadata), dtype=torch.uint8)},
            )
            caller_brings_buffers = MemoryPlanningPass(alloc_graph_input=False, alloc_graph_output=False)
            backend = ExecutorchBackendConfig(
                memory_planning_pass=caller_brings_buffers,
                sym_shape_eval_pass=ConstraintBasedSymShapeEvalPass(),  # the default allows 15 examples
            )
            content = lowered.to_executorch(backend).buffer
    except Exception as error:
        raise ExportError(
            f"ExecuTorch cannot write the model: {str(error).strip().splitlines()[0]}. Operators without a kernel are "
            "those that XNNPACK did not take; exclude them, or choose target=onnxruntime"
        ) from error
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return artifact_of(program, path, about)


def _drop_empty_padding(program: ExportedProgram) -> None:
    """Swin's, of even sizes: XNNPACK takes a float for it and is to write integers, and refuses the program."""
    graph = program.graph_module.graph
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.pad.default):
        if not any(node.args[1]):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    program.graph_module.recompile()
