"""The integer model in the operators that XNNPACK takes, so that ExecuTorch hands it over in one piece.

    flatten, view of [N, ...]      reshape to [-1, ...]: a batch size read from the input stays outside
    x[:, :, ::s, ::s]              a depthwise 1 x 1 convolution of stride s with weight 1
    mean over space, flattened     quantized before it is flattened: it is averaged on integers then
    zero channels before, behind   a 1 x 1 convolution whose weight is a row of the identity, or zero
    padding of a float             quantized before it is padded
    concatenation                  of values that are on its own grid already, five at a time
    q @ k of [N, heads, ...]       bmm of [N heads, ...]: torch spreads the batch first, which stays outside
    integers read at a new scale   (q - z) s f: read at s, times f, put on the new grid; XNNPACK would read them at s

Such a convolution is exact: its sum is (q - z) * 1, its multiplier s_x * 1 / s_x = 1.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from qat.export.bias import OPS, buffer, tidied
from qat.export.copies import with_shapes

CONCATENATIONS = (torch.cat, torch.concat, torch.concatenate)
AT_ONCE = 5  # values that XNNPACK's largest concatenation takes
PRODUCTS = (torch.matmul, operator.matmul, "matmul")
RESHAPES = (torch.flatten, torch.reshape, "flatten", "reshape", "view")


def for_xnnpack(integer: fx.GraphModule, inputs: Sequence[Any]) -> fx.GraphModule:
    """A copy that computes the same with XNNPACK's operators.

    Args:
        integer: an integer model with float biases.
        inputs: example inputs, `[N, ...]`; their shapes decide.
    """
    model = with_shapes(integer, inputs)
    _lay_out_constants(model)
    for index, node in enumerate(list(model.graph.nodes)):
        with model.graph.inserting_before(node):
            new = _rewritten(model, node, f"xnnpack_{index}")
        if new is not None:
            new.meta = {**node.meta}
            node.replace_all_uses_with(new)
            model.graph.erase_node(node)
    return tidied(model)


def _lay_out_constants(model: fx.GraphModule) -> None:
    """ExecuTorch goes by strides, those of axes of size 1 too, which `contiguous` leaves as they are."""
    for path, tensor in list(model.named_buffers()):
        if tensor.stride() != torch.empty(tensor.shape, device="meta").stride():
            parent, _, leaf = path.rpartition(".")
            model.get_submodule(parent).register_buffer(
                leaf, torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor)
            )


def _on_grid(graph: fx.Graph, value: fx.Node, grid: tuple[Any, ...]) -> fx.Node:
    integers = graph.call_function(OPS.quantize_per_tensor.default, (value, *grid))
    return graph.call_function(OPS.dequantize_per_tensor.default, (integers, *grid))


def _rewritten(model: fx.GraphModule, node: fx.Node, name: str) -> fx.Node | None:
    """What stands for `node`; None when it stays."""
    if node.target in RESHAPES and (_keeps_batch(node) or _infers_batch(node)):
        return _reshaped(model.graph, node)
    if node.target is operator.getitem and (stride := _strided(node)) is not None:
        source = node.all_input_nodes[0]
        channels = _shape(source)[1]
        return _convolution(model, source, torch.ones(channels, 1), stride, channels, name)
    if node.target is F.pad and (before := _channel_padding(node)) is not None:
        return _padded(model, node, before, name)
    if node.target in PRODUCTS and (heads := _heads(node)) is not None:
        return _multiplied(model.graph, node, heads)
    if node.target is OPS.dequantize_per_tensor.default and (grid := _other_grid(node)) is not None:
        return _scaled(model, node, grid, name)
    if node.target is OPS.quantize_per_tensor.default:
        if (pooled := _flat_mean(node)) is not None:
            return _averaged(model, node, pooled)
        if (joined := _only(node, CONCATENATIONS)) is not None:
            return _concatenated(model, node, joined)
        if (padded := _only(node, (F.pad,))) is not None and _grid(padded.args[0]) is None:
            return _padded_on_grid(model.graph, node, padded)
    return None


def _shape(node: Any) -> tuple[int, ...]:
    found = node.meta.get("tensor_meta")
    return tuple(found.shape) if hasattr(found, "shape") else ()


def _keeps_batch(node: fx.Node) -> bool:
    source, result = _shape(node.args[0]), _shape(node)
    return bool(source and result) and source[0] == result[0] and _is_float(node)


def _reshaped(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """Of a value that lies in memory in another order, torch reads the batch size to reshape it: it is moved first."""
    source: Any = node.args[0]
    found = source.meta["tensor_meta"]
    if (grid := _grid(source)) and not torch.empty_strided(found.shape, found.stride, device="meta").is_contiguous():
        source = _on_grid(graph, graph.call_method("contiguous", (source,)), grid)
    return graph.call_function(torch.reshape, (source, (-1, *_shape(node)[1:])))


def _infers_batch(node: fx.Node) -> bool:
    """`reshape(-1, ...)`, whose first size stays the batch times a number."""
    sizes: Any = node.args[1] if isinstance(node.args[-1], tuple | list) else node.args[1:]
    return tuple(sizes[:1]) == (-1,) and bool(_shape(node.args[0]) and _shape(node)) and _is_float(node)


def _is_float(node: fx.Node) -> bool:
    return bool(node.meta["tensor_meta"].dtype.is_floating_point)


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


def _grid(node: Any) -> tuple[Any, ...] | None:
    """Scale, zero point and bounds of a value that comes from integers; None for any other value."""
    return node.args[1:] if node.target is OPS.dequantize_per_tensor.default else None


def _other_grid(node: fx.Node) -> tuple[Any, ...] | None:
    """The grid that integers were put on, where it is not the one they are read by."""
    source: Any = node.args[0]
    put = source.args[1:] if source.target is OPS.quantize_per_tensor.default else node.args[1:]
    return None if put == node.args[1:] else put


def _scaled(model: fx.GraphModule, node: fx.Node, grid: tuple[Any, ...], name: str) -> fx.Node:
    """The same integers: `(q - z) s f / (s f)` is q - z to a few 2^-24 of it, and is rounded."""
    graph = model.graph
    value = graph.call_function(OPS.dequantize_per_tensor.default, (node.args[0], *grid))
    factor = buffer(model, f"{name}_factor", torch.tensor([node.args[1] / grid[0]]))
    return _on_grid(graph, graph.call_function(torch.mul, (value, factor)), node.args[1:])


def _heads(node: fx.Node) -> tuple[int, ...] | None:
    """What both factors have between the batch and their matrices; None where that is not the same, or no batch."""
    one, other = (_shape(factor) for factor in node.args)
    return one[1:-2] if len(one) > 2 and one[:-2] == other[:-2] else None


def _multiplied(graph: fx.Graph, node: fx.Node, heads: tuple[int, ...]) -> fx.Node:
    """`[N, *heads, L, d] @ [N, *heads, d, S]`, one matrix after the other."""

    def matrices(factor: Any) -> fx.Node:
        whole = graph.call_method("contiguous", (factor,))
        return graph.call_function(torch.reshape, (whole, (-1, *_shape(factor)[-2:])))

    if not heads:
        return graph.call_function(torch.bmm, tuple(node.args))
    product = graph.call_function(torch.bmm, tuple(matrices(factor) for factor in node.args))
    return graph.call_function(torch.reshape, (product, (-1, *heads, *_shape(node)[-2:])))


def _only(quantizer: fx.Node, targets: tuple[Any, ...]) -> fx.Node | None:
    """The node of such a kind that a quantizer alone reads; None for any other value."""
    value: Any = quantizer.args[0]
    return value if value.target in targets and len(value.users) == 1 else None


def _padded_on_grid(graph: fx.Graph, quantizer: fx.Node, padded: fx.Node) -> fx.Node:
    """A float is put on the grid and padded there: XNNPACK pads from integers to integers, from floats to floats."""
    grid = quantizer.args[1:]
    value, *how = padded.args
    whole = graph.call_function(F.pad, (_on_grid(graph, cast(fx.Node, value), grid), *how), padded.kwargs)
    return graph.call_function(OPS.quantize_per_tensor.default, (whole, *grid))


def _concatenated(model: fx.GraphModule, quantizer: fx.Node, joined: fx.Node) -> fx.Node:
    """Each value is put on the grid before, where it was rounded behind; behind, it is rounded to itself."""
    grid, graph = quantizer.args[1:], model.graph
    values, *rest = joined.args or (joined.kwargs["tensors"],)
    how = {key: value for key, value in joined.kwargs.items() if key != "tensors"}

    together = [
        value if _grid(value) == grid else _on_grid(graph, value, grid) for value in cast(Sequence[fx.Node], values)
    ]
    while len(together) > AT_ONCE:
        parts = [together[i : i + AT_ONCE] for i in range(0, len(together), AT_ONCE)]
        joins = [graph.call_function(torch.cat, (tuple(part), *rest), how) for part in parts]
        together = [_on_grid(graph, join, grid) for join in joins]
    whole = graph.call_function(torch.cat, (tuple(together), *rest), how)
    return graph.call_function(OPS.quantize_per_tensor.default, (whole, *grid))


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
