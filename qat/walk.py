"""The evaluation graph of a prepared model, run up to a node once, and from there to its end as often as wanted.

What changes one quantizer changes nothing before it: trying all of them costs half of running the model each time. Only
values that a later node reads are kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, fx
from torch.utils._pytree import tree_map_only

from qat.inputs import Inputs
from qat.placement.prepared import PreparedModel, device_of, plain_copy


class Walk:
    """One batch on its way through the graph.

    Args:
        prepared: in evaluation mode; what its quantizers are set to when `to` passes them, the values are made with.
        inputs: of one batch.
    """

    def __init__(self, prepared: PreparedModel, inputs: Inputs) -> None:
        graph = plain_copy(prepared.graphs[False])
        self._interpreter = fx.Interpreter(prepared, garbage_collect_values=False, graph=graph)
        self._nodes = list(graph.nodes)
        order = {node: i for i, node in enumerate(self._nodes)}
        self._ends = {n: max((order[user] for user in n.users), default=i) for n, i in order.items()}
        self._live = given(prepared, self._nodes, inputs)
        self._at = 0

    def place(self, path: str) -> int:
        """Where the module at `path` first has a part in the result: the node that calls it, or one around it."""
        calls = (i for i, n in enumerate(self._nodes) if n.op == "call_module")
        return next((i for i in calls if f"{path}.".startswith(f"{self._nodes[i].target}.")), len(self._nodes) - 1)

    def to(self, place: int) -> None:
        """Run up to a place, which is not run yet; forward only."""
        interpreter = self._interpreter
        interpreter.env = self._live
        for i in range(self._at, place):
            node = self._nodes[i]
            if node not in self._live:
                self._live[node] = interpreter.run_node(node)
            for dead in [n for n in self._live if self._ends[n] <= i]:
                del self._live[dead]
        self._at = max(self._at, place)

    def rest(self) -> Any:
        """What the model returns, from here on as its quantizers are set now; the walk stays where it is."""
        interpreter = self._interpreter
        interpreter.env = dict(self._live)
        for i in range(self._at, len(self._nodes)):
            node = self._nodes[i]
            if node not in interpreter.env:
                interpreter.env[node] = interpreter.run_node(node)
            for read in node.all_input_nodes:
                if self._ends[read] <= i:
                    del interpreter.env[read]
        return interpreter.env[self._nodes[-1]]


def given(prepared: PreparedModel, nodes: Iterable[fx.Node], inputs: Inputs) -> dict[fx.Node, Any]:
    """The values of the placeholders among a graph's nodes: positional, by keyword, or their defaults."""
    values, device = prepared.fixed_arguments.checked(inputs.args, inputs.kwargs), device_of(prepared)
    found = {n: values.get(str(n.target).lstrip("*"), *n.args[:1]) for n in nodes if n.op == "placeholder"}
    return {node: tree_map_only(Tensor, lambda x: x.to(device), value) for node, value in found.items()}
