"""One tensor for each input of a file: a dict, list or tuple that forward takes as one input becomes its entries.

    forward(batch)      {"image": x, "meta": m}     inputs image, meta
    forward(pair)       [x, m]                      inputs pair_0, pair_1

Of a dict the file has the entries that forward reads, behind what is given by position: their order is the file's own.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from qat.errors import ConfigError
from qat.export.copies import with_same_tensors
from qat.inputs import CONTAINERS, entry_name

NO_GRAPH = "and has no graph in which it could be opened"


@dataclass(frozen=True)
class FlatInput:
    """One input of a file.

    Attributes:
        name: of the argument or entry.
        example: its value.
        nodes: the nodes of the graph that are it.
    """

    name: str
    example: Any
    nodes: tuple[fx.Node, ...]


def flat_inputs(graph: fx.Graph, inputs: tuple[Any, ...], owner: str = "forward") -> list[FlatInput]:
    """The inputs that a file of this graph has, in its order.

    Args:
        graph: of a prepared or integer model.
        inputs: an example for each placeholder.
        owner: whose inputs they are, for messages.

    Raises:
        ConfigError: a container in a container, one of which more is read than its entries, two inputs of one name.
    """
    by_place: list[FlatInput] = []
    by_key: list[FlatInput] = []
    container = next((x for x in inputs if isinstance(x, CONTAINERS)), None)
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    if container is not None and not placeholders:
        raise _refusal(owner, container, NO_GRAPH)
    for node, example in zip(placeholders, inputs, strict=False):
        if isinstance(example, Mapping):
            readers = _readers(node, owner, example)
            found = [FlatInput(entry_name(key), example[key], tuple(nodes)) for key, nodes in readers.items()]
            by_key += found
        elif isinstance(example, CONTAINERS):
            readers = _readers(node, owner, example)
            found = [
                FlatInput(f"{node.target}_{i}", value, tuple(readers.get(i, ()))) for i, value in enumerate(example)
            ]
            by_place += found
        else:
            by_place.append(FlatInput(str(node.target), example, (node,)))
    flat = [*by_place, *by_key]
    if any(isinstance(one.example, CONTAINERS) for one in flat):
        raise _refusal(owner, container, "with another container in it")
    twice = [name for name, count in Counter(one.name for one in flat).items() if count > 1]
    if twice:
        raise _refusal(owner, container, f"and has two inputs {twice[0]!r}")
    return flat


def with_flat_inputs(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[nn.Module, tuple[Any, ...]]:
    """The model and its example inputs, one by one; as they are where no container is among them.

    Raises:
        ConfigError: containers that cannot be opened, as those of a model without a graph.
    """
    container = next((x for x in inputs if isinstance(x, CONTAINERS)), None)
    if container is None:
        return model, inputs
    if not isinstance(model, fx.GraphModule):
        raise _refusal("forward", container, NO_GRAPH)
    model = with_same_tensors(model)
    graph = model.graph
    before = [node for node in graph.nodes if node.op == "placeholder"]
    flat = flat_inputs(graph, inputs)
    with graph.inserting_before(before[0]):
        for one in flat:
            new = graph.placeholder(one.name)
            for node in one.nodes:
                node.replace_all_uses_with(new)
    for node in [*(node for one in flat for node in one.nodes), *reversed(before)]:
        if not node._erased:
            graph.erase_node(node)
    model.recompile()
    return model, tuple(one.example for one in flat)


def _readers(node: fx.Node, owner: str, example: Any) -> dict[Any, list[fx.Node]]:
    """By key or position, the nodes that read an entry of a container; in the order of the container."""
    found: dict[Any, list[fx.Node]] = {}
    for user in node.users:
        key = user.args[1] if user.target is operator.getitem and user.args[0] is node else None
        if isinstance(key, int) and not isinstance(example, Mapping):
            key %= len(example)
        if not isinstance(key, str | int):
            raise _refusal(owner, example, "and does more with it than read its entries")
        found.setdefault(key, []).append(user)
    order = list(example) if isinstance(example, Mapping) else range(len(example))
    return {key: found[key] for key in order if key in found}


def _refusal(owner: str, container: Any, why: str) -> ConfigError:
    return ConfigError(
        f"{owner} takes a {type(container).__name__} as one input {why}, and a file takes tensors. Let forward take "
        "each of them, called as model(**batch) or model(*batch)"
    )
