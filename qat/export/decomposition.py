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

ATEN = torch.ops.aten
ALIASES: dict[Any, Any] = {  # of operators that have translations, with the same arguments
    ATEN.swapaxes.default: ATEN.transpose.int,
    ATEN.swapdims.default: ATEN.transpose.int,
    ATEN.concat.default: ATEN.cat.default,
    ATEN.concatenate.default: ATEN.cat.default,
}
# torch takes these apart whenever it traces, and torch.onnx translates them all the same
TRANSLATED: frozenset[Any] = frozenset(
    {
        ATEN.broadcast_to.default,
        ATEN.chunk.default,
        ATEN.contiguous.default,
        ATEN.expand_as.default,
        ATEN.flatten.using_ints,
        ATEN.narrow.default,
        ATEN.reshape.default,
        ATEN.unflatten.int,
        ATEN.view_as.default,
    }
)


def decomposed_when_needed(program: ExportedProgram) -> ExportedProgram:
    """The same program, which hands itself out when asked to decompose operators that it has none of."""
    twin = copy.copy(program)
    nodes = _nodes(program)
    for node in nodes:
        if node.target in ALIASES and not node.kwargs:
            node.target = ALIASES[node.target]

    def run_decompositions(table: Mapping[Any, Any] | None = None, **settings: Any) -> ExportedProgram:
        preserved = torch.export.default_decompositions()
        if table is not None and not any(_decomposes(node.target, table, preserved) for node in nodes):
            return twin
        return program.run_decompositions(None if table is None else dict(table), **settings)

    twin.run_decompositions = run_decompositions
    return twin


def _nodes(program: ExportedProgram) -> list[fx.Node]:
    graphs = [module.graph for module in program.graph_module.modules() if isinstance(module, fx.GraphModule)]
    return [node for graph in graphs for node in graph.nodes if node.op == "call_function"]


def _decomposes(target: Any, table: Mapping[Any, Any], preserved: Mapping[Any, Any]) -> bool:
    """Operators of the table, those that write into an argument or call graphs, and those that no trace preserves."""
    if isinstance(target, torch._ops.HigherOrderOperator) or target in table:
        return True
    if not isinstance(target, torch._ops.OpOverload):
        return False  # on sizes
    composite = target._can_decompose() and target not in preserved and target not in TRANSLATED
    return target._schema.is_mutable or composite
