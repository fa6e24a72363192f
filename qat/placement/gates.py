"""Activations that a runtime has no integer kernel for, opened into operators that it has.

    SiLU(x) = x * sigmoid(x)                Hardswish(x) = x * hardsigmoid(x)
    hardsigmoid(x) = clamp(x / 6 + 1/2, 0, 1)

onnxruntime has an integer kernel for a product, a sum and, from a table, for a sigmoid; the clamp is that of the
quantizer behind the sum. Computed in float, EfficientNet-B0 spent 63 % of its kernels' time in SiLU, and
MobileNetV3-Large 17 % in hardsigmoid (docs/log.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from qat.placement.patterns import Role, is_tensor, role_of, sixth_and_half
from qat.placement.sites import NAMED, base_name

# by the activation: what gates its input, and whether the input is multiplied by it
MODULES = {nn.SiLU: (torch.sigmoid, True), nn.Hardswish: (F.hardsigmoid, True), nn.Hardsigmoid: (F.hardsigmoid, False)}
FUNCTIONS: dict[Any, tuple[Any, bool]] = {
    F.silu: (torch.sigmoid, True),
    F.hardswish: (F.hardsigmoid, True),
    F.hardsigmoid: (F.hardsigmoid, False),
}


def open_gates(graph: fx.Graph, modules: Mapping[str, nn.Module], whole: tuple[type[nn.Module], ...] = ()) -> None:
    """Replace each SiLU, Hardswish and Hardsigmoid behind an operator that can run on integers, in place.

    Args:
        graph: with shapes propagated; the new nodes have the shape and the scope of the old one.
        modules: by path.
        whole: module classes to leave as they are.
    """
    for node in list(graph.nodes):
        found = _gate(node, modules, whole)
        if found is None or not is_tensor(node) or role_of(node.all_input_nodes[0], modules) is Role.FLOAT:
            continue
        gate, multiplies = found
        x = node.all_input_nodes[0]
        with graph.inserting_before(node):
            last = _call(graph, node, gate, x)
            if multiplies:
                last = _call(graph, node, torch.mul, x, last)
        node.replace_all_uses_with(last)
        graph.erase_node(node)


def _call(graph: fx.Graph, instead_of: fx.Node, function: Any, *args: Any) -> fx.Node:
    if function is F.hardsigmoid:
        line = _call(graph, instead_of, sixth_and_half, *args)
        line.meta[NAMED] = base_name(line).replace(sixth_and_half.__name__, "hardsigmoid")
        return _call(graph, instead_of, F.hardtanh, line, 0.0, 1.0)
    node = graph.call_function(function, args)
    node.meta = {**instead_of.meta}
    return node


def _gate(
    node: fx.Node, modules: Mapping[str, nn.Module], whole: tuple[type[nn.Module], ...]
) -> tuple[Any, bool] | None:
    if node.op == "call_function":
        return FUNCTIONS.get(node.target)
    module = modules[str(node.target)] if node.op == "call_module" else None
    if module is None or isinstance(module, whole):
        return None
    return next(
        (g for cls, g in MODULES.items() if isinstance(module, cls) and type(module).forward is cls.forward), None
    )


__all__ = ["open_gates"]
