"""The inputs of a file: a dict, list or tuple that forward takes as one input becomes its entries, one tensor each.

    forward(batch)      {"image": x, "meta": m}     inputs image, meta
    forward(pair)       [x, m]                      inputs pair_0, pair_1

A file has the entries that forward reads, in the order in which it does.
"""

from __future__ import annotations

import itertools
import operator
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, fx

from qat.errors import ConfigError, DataError
from qat.inputs import CONTAINERS, Inputs, entry_name
from qat.placement.prepared import PreparedModel

NO_GRAPH = "and has no graph in which it could be opened"


@dataclass(frozen=True, kw_only=True)
class FlatInput:
    """One input of a file.

    Attributes:
        name: in the file.
        path: the argument's name, and the key or position in it.
        example: its value.
        nodes: the nodes of the graph that are it.
    """

    name: str
    path: tuple[Any, ...]
    example: Any
    nodes: tuple[fx.Node, ...]


def flat_inputs(graph: fx.Graph, inputs: Sequence[Any], owner: str = "forward") -> list[FlatInput]:
    """The inputs that a file of this graph has.

    Args:
        graph: of a prepared or integer model.
        inputs: an example for each placeholder.
        owner: whose inputs they are, for messages.

    Raises:
        ConfigError: a container in a container, or one of which more is read than its entries.
    """
    found: list[FlatInput] = []
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    container = next((x for x in inputs if isinstance(x, CONTAINERS)), None)
    if container is not None and not placeholders:
        raise refusal(owner, container, NO_GRAPH)
    for node, example in zip(placeholders, inputs, strict=False):
        name = str(node.target).lstrip("*")
        if not isinstance(example, CONTAINERS):
            found.append(FlatInput(name=name, path=(name,), example=example, nodes=(node,)))
            continue
        for key, nodes in _readers(node, owner, example).items():
            if isinstance(value := example[key], CONTAINERS):
                raise refusal(owner, example, "with another container in it")
            own = entry_name(key) if isinstance(example, Mapping) else f"{name}_{key}"
            found.append(FlatInput(name=own, path=(name, key), example=value, nodes=tuple(nodes)))
    counts = Counter(one.name for one in found)
    for i, one in enumerate(found):
        if counts[one.name] > 1 and len(one.path) > 1:
            found[i] = replace(one, name=entry_name("_".join(map(str, one.path))))
    taken = {"self"}
    for i, one in enumerate(found):
        spelled = re.sub(r"[^a-zA-Z0-9]", "_", one.name).lower()  # as torch.export does
        names = (spelled if n == 0 else f"{spelled}_{n}" for n in itertools.count())
        found[i] = replace(one, name=next(name for name in names if name not in taken))
        taken.add(found[i].name)
    return found


def feed(prepared: PreparedModel, inputs: Inputs, names: Sequence[str]) -> list[Any]:
    """The tensors of a batch as an artefact of `prepared` takes them, which has inputs of these names.

    Raises:
        CaptureError: a setting with another value than the artefact's.
        DataError: an input is missing.
    """
    flat = flat_inputs(prepared.graphs[False], prepared.example_inputs)
    if not flat or not names:
        return inputs.ordered(names)
    given = prepared.fixed_arguments.checked(inputs.args, inputs.kwargs)
    paths = {one.name: one.path for one in flat}
    found = []
    for name in names:
        value: Any = given
        try:
            for key in paths[name]:
                value = value[key]
        except (KeyError, IndexError, TypeError) as error:
            raise DataError(
                f"the artefact takes {', '.join(names)}, and the batch has no {name!r}; several inputs come as "
                "((a, b), labels) or ({'a': a, 'b': b}, labels)"
            ) from error
        found.append(value)
    return found


def refusal(owner: str, container: Any, why: str) -> ConfigError:
    """Why the entries of a container cannot be inputs of a file."""
    return ConfigError(
        f"{owner} takes a {type(container).__name__} as one input {why}, and a file takes tensors. Let forward take "
        "each of them, called as model(**batch) or model(*batch)"
    )


def _readers(node: fx.Node, owner: str, example: Any) -> dict[Any, list[fx.Node]]:
    """By key or position, the nodes that read an entry of a container; in the order of the graph."""
    found: dict[Any, list[fx.Node]] = {}
    for user in node.users:
        key = user.args[1] if user.target is operator.getitem and user.args[0] is node else None
        if isinstance(key, int) and not isinstance(example, Mapping):
            key %= len(example)
        if not isinstance(key, str | int):
            raise refusal(owner, example, "and does more with it than read its entries")
        if isinstance(example[key], (Tensor, *CONTAINERS)):  # a number is a constant of the file
            found.setdefault(key, []).append(user)
    return found
