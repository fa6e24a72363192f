"""The integer model with one tensor for each input of a file: containers are opened."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from qat.export.copies import with_same_tensors
from qat.inputs import CONTAINERS
from qat.placement.flat import NO_GRAPH, flat_inputs, refusal


def with_flat_inputs(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[nn.Module, tuple[Any, ...]]:
    """The model and its example inputs, one by one; as they are where no container is among them.

    Args:
        model: an integer model, or any other.
        inputs: an example for each of its inputs.

    Raises:
        ConfigError: containers that cannot be opened, as those of a model without a graph.
    """
    container = next((x for x in inputs if isinstance(x, CONTAINERS)), None)
    if container is None:
        return model, inputs
    if not isinstance(model, fx.GraphModule):
        raise refusal("forward", container, NO_GRAPH)
    model = with_same_tensors(model)
    graph = model.graph
    before = [node for node in graph.nodes if node.op == "placeholder"]
    flat = flat_inputs(graph, inputs)
    with graph.inserting_before(before[0]):
        for one in flat:
            new = graph.placeholder(one.name)
            for node in one.nodes:
                node.replace_all_uses_with(new)
    examples = dict(zip(before, inputs, strict=True))
    for node in before:
        for read in list(node.users):
            if isinstance(examples[node], CONTAINERS) and read.users:  # of a number, a constant of the file
                _replace_by(read, examples[node][read.args[1]])
            graph.erase_node(read)
        graph.erase_node(node)
    model.recompile()
    return model, tuple(one.example for one in flat)


def _replace_by(node: fx.Node, constant: Any) -> None:
    for user in list(node.users):
        user.args, user.kwargs = fx.node.map_arg((user.args, user.kwargs), lambda n: constant if n is node else n)
