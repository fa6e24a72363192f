"""Which operator of the plan each node of the prepared graph belongs to, and what that operator reads.

Prepare puts quantizers into the graph and takes absorbed activations out, but keeps the order. So the operators are
found by walking both in step; a node in between (BatchNorm, quantizer) belongs to the operator that it reads.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx, nn

from qat.placement.patterns import function_name
from qat.placement.plan import PlannedOp
from qat.placement.prepared import PreparedModel
from qat.quantizers import FakeQuantize


@dataclass(frozen=True)
class Owned:
    """The graph as the plan tells it.

    Attributes:
        owner: name of the operator that a node belongs to.
        inputs: names of the operators that an operator reads.
    """

    owner: dict[fx.Node, str]
    inputs: dict[str, tuple[str, ...]]


def find_owners(prepared: PreparedModel) -> Owned:
    """Owners in the graph of evaluation mode; both empty for a model without a graph."""
    owner: dict[fx.Node, str] = {}
    inputs: dict[str, tuple[str, ...]] = {}
    waiting = [op for op in prepared.plan.ops if op.kind not in ("input", "parameter")]
    known = {op.name for op in prepared.plan.ops}
    for node in prepared.graphs[False].nodes:
        if node.op in ("placeholder", "get_attr"):
            if str(node.target) in known:
                owner[node] = str(node.target)
            continue
        sources = tuple(dict.fromkeys(owner[n] for n in node.all_input_nodes if n in owner))
        found = None if node.op == "output" else _match(node, waiting, prepared)
        if found is not None:
            del waiting[: waiting.index(found) + 1]
            owner[node], inputs[found.name] = found.name, sources
        elif sources and node.op != "output":
            owner[node] = sources[0]
    return Owned(owner, inputs)


def _match(node: fx.Node, waiting: list[PlannedOp], prepared: nn.Module) -> PlannedOp | None:
    """The operator that a node is; the next one, or a later one of the same name where the next was absorbed."""
    if node.op != "call_module":
        near = waiting[:3]  # nothing else in between is left out of the graph
        return next((op for op in near if op.kind == function_name(node)), None)
    target = str(node.target)
    if isinstance(prepared.get_submodule(target), FakeQuantize):
        return None
    return next((op for op in waiting if _without_count(op.name, target) or f"{op.name}_weighted" == target), None)


def _without_count(name: str, target: str) -> bool:
    rest = name.removeprefix(target)
    return name.startswith(target) and (not rest or (rest[0] == "_" and rest[1:].isdigit()))
