"""What an operator writes into, said by the graph: who reads it afterwards reads that operator's result.

The graph then says what the float model computes, also when the operator is replaced by one that writes nothing.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, fx, nn

from qat.errors import CaptureError
from qat.placement.patterns import ancestors

AUGMENTED = {operator.iadd, operator.isub, operator.imul, operator.itruediv}  # x += y
VIEWS = (
    "getitem", "view", "view_as", "transpose", "permute", "t", "swapaxes", "movedim", "squeeze", "unsqueeze", "select",
    "narrow", "expand", "expand_as", "detach",
)  # fmt: skip
SIZES = ("size", "shape", "dim", "ndim", "dtype", "device", "getattr", "numel")  # read nothing of what was written


def with_item(x: Tensor, index: Any, value: Any) -> Tensor:
    """`x[index] = value`, as a new tensor."""
    written = x.clone()
    written[index] = value
    return written


def read_what_was_written(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> None:
    """Rewrite `graph` so.

    Raises:
        CaptureError: an operator writes into part of a value that is read whole afterwards, or the other way round.
    """
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target is operator.setitem:
            node.target = with_item
    place = {node: i for i, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        if not node.all_input_nodes or not _writes(node, modules):
            continue
        written = node.all_input_nodes[0]
        overlapping = _overlapping(written, place[node], place) if _of_inputs(written) else ()
        for value in overlapping:
            late = next((u for u in value.users if place[u] > place[node] and not _asks_size(u)), None)
            if late is not None:
                raise CaptureError(
                    f"forward writes into {written.name!r} ({node.name}), which shares its memory with {value.name!r}, "
                    f"and {late.name!r} reads that afterwards: a graph cannot say so. Write y = torch.cat([...]) or "
                    "torch.where(...) instead of writing into a slice, or use placement=modules"
                )
        written.replace_all_uses_with(node, delete_user_cb=lambda user, after=place[node]: place[user] > after)


def _of_inputs(node: fx.Node) -> bool:
    """Whether a value follows from the inputs; what parameters alone decide is computed in order, as it is written."""
    return any(n.op == "placeholder" for n in ancestors(node))


def is_written_into(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a reader of a value, or of a view of it, writes into it."""
    readers = [user for user in node.users if user.all_input_nodes[0] is node]
    return any(_writes(user, modules) or (_is_view(user) and is_written_into(user, modules)) for user in readers)


def _overlapping(written: fx.Node, at: int, place: Mapping[fx.Node, int]) -> Iterator[fx.Node]:
    """What `written` is a view of, and the views of it that were taken before."""
    base = written
    while _is_view(base):
        base = base.all_input_nodes[0]
        yield base
    todo = [written]
    while todo:
        for user in todo.pop().users:
            if place[user] < at and _is_view(user):
                yield user
                todo.append(user)


def _is_view(node: fx.Node) -> bool:
    name = str(getattr(node.target, "__name__", node.target))
    if node.op not in ("call_function", "call_method") or name not in VIEWS or not node.all_input_nodes:
        return False
    return name != "getitem" or not _asks_size(node.all_input_nodes[0])


def _asks_size(node: fx.Node) -> bool:
    return str(getattr(node.target, "__name__", node.target)) in SIZES


def _writes(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a node's first input holds its result afterwards."""
    if node.op == "call_module":
        return bool(getattr(modules[str(node.target)], "inplace", False))
    if node.op not in ("call_function", "call_method"):
        return False
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    by_name = name.endswith("_") and not name.endswith("__")
    return by_name or node.target in {*AUGMENTED, with_item} or bool(node.kwargs.get("inplace"))
