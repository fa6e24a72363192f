"""The integer model in the operators that XNNPACK takes, so that ExecuTorch hands it over in one piece.

    flatten, view of [N, ...]      reshape to [-1, ...]: a batch size read from the input stays outside
    x[:, :, ::s, ::s]              a depthwise 1 x 1 convolution of stride s with weight 1
    mean over space, flattened     quantized before it is flattened: it is averaged on integers then
    zero channels before, behind   a 1 x 1 convolution whose weight is a row of the identity, or zero

Such a convolution is exact: its sum is (q - z) * 1, its multiplier s_x * 1 / s_x = 1.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from qat.export.bias import OPS, buffer, tidied
from qat.export.copies import with_shapes

RESHAPES = (torch.flatten, torch.reshape, "flatten", "reshape", "view")


def for_xnnpack(integer: fx.GraphModule, inputs: Sequence[Any]) -> fx.GraphModule:
    """A copy that computes the same with XNNPACK's operators.

    Args:
        integer: an integer model with float biases.
        inputs: example inputs, `[N, ...]`; their shapes decide.
    """
    model = with_shapes(integer, inputs)
    for index, node in enumerate(list(model.graph.nodes)):
        with model.graph.inserting_before(node):
            new = _rewritten(model, node, f"xnnpack_{index}")
        if new is not None:
            new.meta = {**node.meta}
            node.replace_all_uses_with(new)
            model.graph.erase_node(node)
    return tidied(model)


def _rewritten(model: fx.GraphModule, node: fx.Node, name: str) -> fx.Node | None:
    """What stands for `node`; None when it stays."""
    if node.target in RESHAPES and _keeps_batch(node):
        return model.graph.call_function(torch.reshape, (node.args[0], (-1, *_shape(node)[1:])))
    if node.target is operator.getitem and (stride := _strided(node)) is not None:
        source = node.all_input_nodes[0]
        channels = _shape(source)[1]
        return _convolution(model, source, torch.ones(channels, 1), stride, channels, name)
    if node.target is F.pad and (before := _channel_padding(node)) is not None:
        return _padded(model, node, before, name)
    if node.target is OPS.quantize_per_tensor.default and (pooled := _flat_mean(node)) is not None:
        return _averaged(model, node, pooled)
    return None


def _shape(node: Any) -> tuple[int, ...]:
    found = node.meta.get("tensor_meta")
    return tuple(found.shape) if hasattr(found, "shape") else ()


def _keeps_batch(node: fx.Node) -> bool:
    source, result = _shape(node.args[0]), _shape(node)
    return bool(source and result) and source[0] == result[0] and node.meta["tensor_meta"].dtype.is_floating_point


def _strided(node: fx.Node) -> tuple[int, int] | None:
    """Steps of `x[:, :, ::a, ::b]` on an image; None for any other index."""
    index: Any = node.args[1]
    if len(_shape(node.args[0])) != 4 or not isinstance(index, tuple) or len(index) != 4:
        return None
    if not all(isinstance(i, slice) and i.start in (None, 0) and i.stop is None for i in index):
        return None
    steps = [1 if i.step is None else i.step for i in index]
    return (steps[2], steps[3]) if steps[:2] == [1, 1] else None


def _channel_padding(node: fx.Node) -> tuple[int, int] | None:
    """Channels of zeros before and behind an image's own; None when anything else is padded."""
    padding: Any = node.args[1]
    width = tuple(padding)
    if len(_shape(node.args[0])) != 4 or len(width) != 6 or any(width[:4]) or min(width) < 0:
        return None
    return width[4], width[5]


def _flat_mean(quantizer: fx.Node) -> fx.Node | None:
    """The mean over space that a quantizer puts on a grid behind a reshape; None for any other value."""
    reshaped: Any = quantizer.args[0]
    if reshaped.target is not torch.reshape or len(reshaped.users) > 1:
        return None
    source = reshaped.args[0]
    return source if source.target is F.adaptive_avg_pool2d and len(source.users) == 1 else None


def _averaged(model: fx.GraphModule, quantizer: fx.Node, pooled: fx.Node) -> fx.Node:
    reshaped: Any = quantizer.args[0]
    grid, graph = quantizer.args[1:], model.graph
    integers = graph.call_function(OPS.quantize_per_tensor.default, (pooled, *grid))
    value = graph.call_function(OPS.dequantize_per_tensor.default, (integers, *grid))
    flat = graph.call_function(torch.reshape, (value, reshaped.args[1]))
    return graph.call_function(OPS.quantize_per_tensor.default, (flat, *grid))


def _padded(model: fx.GraphModule, node: fx.Node, around: tuple[int, int], name: str) -> fx.Node | None:
    """Padding happens on integers: around the convolution they are dequantized, and put on their grid again."""
    reader = next((u for u in node.users if u.target is OPS.dequantize_per_tensor.default), None)
    if reader is None:
        return None
    grid, graph = reader.args[1:], model.graph
    channels = _shape(node.args[0])[1]
    weight = torch.cat([torch.zeros(around[0], channels), torch.eye(channels), torch.zeros(around[1], channels)])
    value = graph.call_function(OPS.dequantize_per_tensor.default, (node.args[0], *grid))
    value = _convolution(model, value, weight, (1, 1), 1, name)
    return graph.call_function(OPS.quantize_per_tensor.default, (value, *grid))


def _convolution(
    model: fx.GraphModule, x: fx.Node, weight: Tensor, stride: tuple[int, int], groups: int, name: str
) -> fx.Node:
    """A 1 x 1 convolution with a weight `[C_out, C_in / groups]` of zeros and ones."""
    out = len(weight)
    integers = buffer(model, f"{name}_weight", weight.to(torch.int8)[:, :, None, None])
    scale = buffer(model, f"{name}_scale", torch.ones(out))
    zero = buffer(model, f"{name}_zero_point", torch.zeros(out, dtype=torch.int64))
    bias = buffer(model, f"{name}_bias", torch.zeros(out))
    dequantize = OPS.dequantize_per_channel.default
    value = model.graph.call_function(dequantize, (integers, scale, zero, 0, -127, 127, torch.int8))
    return model.graph.call_function(F.conv2d, (x, value, bias, stride, (0, 0), (1, 1), groups))
