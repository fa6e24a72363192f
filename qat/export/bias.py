"""Biases in float, for runtimes that round them themselves: b = q * s, the value that the int32 stands for.

Rounding it again at scale s = s_x * s_w gives q back: float32 holds q * s to 2^-24, far less than half a step while
|q| < 2^23, and a bias is a few thousand steps.
"""

from __future__ import annotations

import torch
import torch.ao.quantization.fx._decomposed
from torch import Tensor, fx

from qat.export.copies import with_same_tensors

OPS = torch.ops.quantized_decomposed
DEQUANTIZE = (OPS.dequantize_per_channel.default, OPS.dequantize_per_tensor.default)


def float_biases(integer: fx.GraphModule) -> fx.GraphModule:
    """A copy of an integer model whose int32 biases are float buffers `[C_out]`, with no dequantize behind them."""
    model = with_same_tensors(integer)
    for node in list(model.graph.nodes):
        if node.target in DEQUANTIZE and node.args[-1] is torch.int32:
            bias = model.get_buffer(str(node.args[0].target)).double()
            scale, reads = node.args[1], node.all_input_nodes
            value = bias * (model.get_buffer(str(scale.target)) if isinstance(scale, fx.Node) else scale)
            with model.graph.inserting_before(node):
                stored = buffer(model, f"{node.args[0].target}_float", value.float())
            node.replace_all_uses_with(stored)
            model.graph.erase_node(node)
            for read in [n for n in reads if not n.users]:
                model.graph.erase_node(read)
                drop(model, str(read.target))
    return tidied(model)


def with_zero_points(integer: fx.GraphModule) -> fx.GraphModule:
    """A copy whose weights all have zero points, int64 `[C_out]`, all 0: XNNPACK and Inductor look for them."""
    model = with_same_tensors(integer)
    for node in list(model.graph.nodes):
        if node.target is OPS.dequantize_per_channel.default:
            path = str(node.args[0].target)
            zeros = torch.zeros(len(model.get_buffer(path)), dtype=torch.int64)
            with model.graph.inserting_before(node):
                node.update_arg(2, buffer(model, f"{path}_zeros", zeros))
    return tidied(model)


def buffer(model: fx.GraphModule, path: str, value: Tensor) -> fx.Node:
    """A new buffer of `model` and the node that reads it, at the graph's insertion point."""
    parent, _, leaf = path.rpartition(".")
    model.get_submodule(parent).register_buffer(leaf, value)
    return model.graph.get_attr(path)


def tidied(model: fx.GraphModule) -> fx.GraphModule:
    """The same model without nodes that nothing reads, recompiled."""
    model.graph.eliminate_dead_code()
    model.recompile()
    return model


def drop(model: fx.GraphModule, path: str) -> None:
    """Remove a buffer that the graph no longer reads."""
    parent, _, leaf = path.rpartition(".")
    if not any(n.op == "get_attr" and n.target == path for n in model.graph.nodes):
        delattr(model.get_submodule(parent), leaf)
