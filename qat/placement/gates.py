"""Activations that are a product of their input and a gate, opened: the product then runs on integers.

    SiLU(x) = x * sigmoid(x)                Hardswish(x) = x * hardsigmoid(x)

onnxruntime has no integer kernel for the whole. It has one for a product and, from a table, for a sigmoid; computed in
float, EfficientNet-B0 spent 63 % of its kernels' time here (docs/log.md, 2026-11-26).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from qat.placement.patterns import Role, is_tensor, role_of

MODULES = {nn.SiLU: torch.sigmoid, nn.Hardswish: F.hardsigmoid}
FUNCTIONS: dict[Any, Any] = {F.silu: torch.sigmoid, F.hardswish: F.hardsigmoid}


def open_gates(graph: fx.Graph, modules: Mapping[str, nn.Module], whole: tuple[type[nn.Module], ...] = ()) -> None:
    """Replace each SiLU and Hardswish behind an operator that can run on integers by its gate and a product, in place.

    Args:
        graph: with shapes propagated; the new nodes have the shape and the scope of the old one.
        modules: by path.
        whole: module classes to leave as they are.
    """
    for node in list(graph.nodes):
        gate = _gate(node, modules, whole)
        if gate is None or not is_tensor(node) or role_of(node.all_input_nodes[0], modules) is Role.FLOAT:
            continue
        x = node.all_input_nodes[0]
        with graph.inserting_before(node):
            gated = graph.call_function(gate, (x,))
            product = graph.call_function(torch.mul, (x, gated))
        gated.meta, product.meta = {**node.meta}, {**node.meta}
        node.replace_all_uses_with(product)
        graph.erase_node(node)


def _gate(node: fx.Node, modules: Mapping[str, nn.Module], whole: tuple[type[nn.Module], ...]) -> Any:
    if node.op == "call_function":
        return FUNCTIONS.get(node.target)
    module = modules[str(node.target)] if node.op == "call_module" else None
    if module is None or isinstance(module, whole):
        return None
    return next(
        (g for cls, g in MODULES.items() if isinstance(module, cls) and type(module).forward is cls.forward), None
    )


__all__ = ["open_gates"]
