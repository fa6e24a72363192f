"""Activations that a runtime has no integer kernel for, opened into operators that it has.

    SiLU(x) = x * sigmoid(x)                Hardswish(x) = x * hardsigmoid(x)
    hardsigmoid(x) = clamp(x / 6 + 1/2, 0, 1)

onnxruntime has an integer kernel for a product, a sum and, from a table, for a sigmoid. The clamp is that of the
quantizer behind the sum where the grid has a zero point; a symmetric one does not end at 0, and hardsigmoid stays
whole. Computed in float, EfficientNet-B0 spent 63 % of its kernels' time in SiLU, and MobileNetV3-Large 16 % in
hardsigmoid (docs/log.md).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.nn import functional as F

from qat.placement.patterns import Role, is_tensor, role_of, unclamped_hardsigmoid
from qat.placement.sites import NAMED, base_name


class Opened(NamedTuple):
    """What an activation is made of.

    Attributes:
        gate: of its input.
        multiplies: whether the input is multiplied by the gate; otherwise the gate is all there is.
    """

    gate: Any
    multiplies: bool


FUNCTIONS: dict[Any, Opened] = {
    F.silu: Opened(torch.sigmoid, True),
    F.hardswish: Opened(F.hardsigmoid, True),
    F.hardsigmoid: Opened(F.hardsigmoid, False),
}
MODULES = {nn.SiLU: F.silu, nn.Hardswish: F.hardswish, nn.Hardsigmoid: F.hardsigmoid}


def open_gates(
    graph: fx.Graph,
    modules: Mapping[str, nn.Module],
    whole: tuple[type[nn.Module], ...] = (),
    left: Collection[fx.Node] = (),
    *,
    clamps: bool = True,
) -> None:
    """Replace each SiLU, Hardswish and Hardsigmoid behind an operator that can run on integers, in place.

    Args:
        graph: with shapes propagated; the new nodes have the shape and the scope of the old one.
        modules: by path.
        whole: module classes to leave as they are.
        left: nodes to leave as they are.
        clamps: whether quantizers clamp at 0, so that hardsigmoid is opened too.
    """
    for node in list(graph.nodes):
        opened = None if node in left else FUNCTIONS.get(_function(node, modules, whole))
        if opened is None or not is_tensor(node) or role_of(node.all_input_nodes[0], modules) is Role.FLOAT:
            continue
        if not clamps and not opened.multiplies:
            continue
        x = node.all_input_nodes[0]
        with graph.inserting_before(node):
            if opened.gate is F.hardsigmoid and clamps:
                line = _call(graph, node, unclamped_hardsigmoid, x)
                line.meta[NAMED] = base_name(line).replace(unclamped_hardsigmoid.__name__, F.hardsigmoid.__name__)
                last = _call(graph, node, F.hardtanh, line, 0.0, 1.0)
            else:
                last = _call(graph, node, opened.gate, x)
            if opened.multiplies:
                last = _call(graph, node, torch.mul, x, last)
        node.replace_all_uses_with(last)
        graph.erase_node(node)


def _call(graph: fx.Graph, instead_of: fx.Node, function: Any, *args: Any) -> fx.Node:
    node = graph.call_function(function, args)
    node.meta = {**instead_of.meta}
    return node


def _function(node: fx.Node, modules: Mapping[str, nn.Module], whole: tuple[type[nn.Module], ...]) -> Any:
    """The function that a node computes, called as one or as torch's own module of it."""
    if node.op == "call_function":
        return node.target
    module = modules[str(node.target)] if node.op == "call_module" else None
    if module is None or isinstance(module, whole):
        return None
    return next(
        (f for cls, f in MODULES.items() if isinstance(module, cls) and type(module).forward is cls.forward), None
    )


__all__ = ["open_gates"]
