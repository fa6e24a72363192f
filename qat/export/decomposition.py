"""Decomposition of a program, where it has something to decompose.

torch.onnx has every program decomposed before it translates it. That traces the whole program twice, two fifths of the
time of an export, and leaves an integer graph as it was: its operators all have translations.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram


def decomposed_when_needed(program: ExportedProgram) -> ExportedProgram:
    """The same program, which hands itself out when asked to decompose operators that it has none of."""
    twin = copy.copy(program)

    def run_decompositions(table: Mapping[Any, Any] | None = None, **settings: Any) -> ExportedProgram:
        if table is not None and not any(_decomposes(node, table) for node in _nodes(program)):
            return twin
        return program.run_decompositions(None if table is None else dict(table), **settings)

    twin.run_decompositions = run_decompositions
    return twin


def _nodes(program: ExportedProgram) -> list[fx.Node]:
    graphs = [module.graph for module in program.graph_module.modules() if isinstance(module, fx.GraphModule)]
    return [node for graph in graphs for node in graph.nodes if node.op == "call_function"]


def _decomposes(node: fx.Node, table: Mapping[Any, Any]) -> bool:
    """Operators of the table, those that write into an argument, and those that call graphs of their own."""
    target = node.target
    writes = isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable
    return writes or target in table or isinstance(target, torch._ops.HigherOrderOperator)
