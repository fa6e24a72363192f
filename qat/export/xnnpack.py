"""The integer model in the operators that XNNPACK takes, so that ExecuTorch hands it over in one piece.

    flatten, view of [N, ...]      reshape to [-1, ...]: a batch size read from the input stays outside
    x[:, :, ::s, ::s]              a depthwise 1 x 1 convolution of stride s with weight 1
    mean over space, flattened     quantized before it is flattened: it is averaged on integers then
    zero channels before, behind   a 1 x 1 convolution whose weight is a row of the identity, or zero
    padding of a float             quantized before it is padded
    concatenation                  of values that are on its own grid already
    q @ k of [N, heads, ...]       bmm of [N heads, ...]: torch spreads the batch first, which stays outside
    integers read at a new scale   (q - z) s f: read at s, times f, put on the new grid; XNNPACK would read them at s

Such convolutions are in unit_convolution.py.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import fx, nn
from torch.nn import functional as F

from qat.export.bias import OPS, buffer, tidied
from qat.export.copies import batch_first, shape_of, with_batch_axes
from qat.export.unit_convolution import channel_padding, strided, unit_convolution
from qat.placement.patterns import argument

CONCATENATIONS = (torch.cat, torch.concat, torch.concatenate)
STACKS = {torch.hstack: 1, torch.dstack: 2}  # the axis they are concatenations along
PRODUCTS = (torch.matmul, operator.matmul, "matmul")
RESHAPES = (torch.flatten, torch.reshape, "flatten", "reshape", "view")


def for_xnnpack(integer: fx.GraphModule, inputs: Sequence[Any]) -> fx.GraphModule:
    """A copy that computes the same with XNNPACK's operators.

    Args:
        integer: an integer model with float biases.
        inputs: example inputs, `[N, ...]`; their shapes decide.
    """
    model = with_batch_axes(integer, inputs)
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
    for module in model.modules():
        for held in cast(tuple[dict[str, Any], ...], (module._buffers, module._parameters)):
            for name, tensor in held.items():
                if tensor is not None and tensor.stride() != torch.empty(tensor.shape, device="meta").stride():
                    laid_out = torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())
                    held[name] = nn.Parameter(laid_out) if isinstance(tensor, nn.Parameter) else laid_out


def _on_grid(graph: fx.Graph, value: fx.Node, grid: tuple[Any, ...]) -> fx.Node:
    integers = graph.call_function(OPS.quantize_per_tensor.default, (value, *grid))
    return graph.call_function(OPS.dequantize_per_tensor.default, (integers, *grid))


def _rewritten(model: fx.GraphModule, node: fx.Node, name: str) -> fx.Node | None:
    """What stands for `node`; None when it stays."""
    if _reshapes(model, node) and (_keeps_batch(node) or _infers_batch(node)):
        return _reshaped(model.graph, node)
    if node.op not in ("call_function", "call_method"):  # another's name may be that of a method
        return None
    if node.target is operator.getitem and (stride := strided(node)) is not None:
        source = node.all_input_nodes[0]
        channels = shape_of(source)[1]
        return unit_convolution(model, source, torch.ones(channels, 1), stride, channels, name)
    if node.target is F.pad and (before := channel_padding(node)) is not None:
        return _padded(model, node, before, name)
    if node.target in PRODUCTS and (factors := _batches(node)) is not None:
        return _multiplied(model.graph, node, factors)
    if node.target is OPS.dequantize_per_tensor.default and (grid := _other_grid(node)) is not None:
        return _scaled(model, node, grid, name)
    if node.target is OPS.quantize_per_tensor.default:
        if (pooled := _flat_mean(node)) is not None:
            return _averaged(model.graph, node, pooled)
        if (joined := _only(node, (*CONCATENATIONS, *STACKS))) is not None:
            return _concatenated(model.graph, node, joined)
        if (padded := _only(node, (F.pad,))) is not None and _grid(padded.args[0]) is None:
            return _padded_on_grid(model.graph, node, padded)
    return None


def _reshapes(model: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(model.get_submodule(str(node.target)), nn.Flatten)
    return node.op in ("call_function", "call_method") and node.target in RESHAPES


def _keeps_batch(node: fx.Node) -> bool:
    source = node.all_input_nodes[0]
    return batch_first(source, node) and shape_of(source)[0] == shape_of(node)[0] and _is_float(node)


def _infers_batch(node: fx.Node) -> bool:
    """`reshape(-1, ...)`, whose first size is the batch times a number."""
    sizes: Any = node.kwargs.get("shape", node.args[1:])
    sizes = sizes[0] if sizes and isinstance(sizes[0], tuple | list) else sizes
    return tuple(sizes[:1]) == (-1,) and batch_first(node.all_input_nodes[0], node) and _is_float(node)


def _reshaped(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """Of a value that lies in memory in another order, torch reads the batch size to reshape it: it is moved first."""
    source = node.all_input_nodes[0]
    found = source.meta["tensor_meta"]
    if (grid := _grid(source)) and not torch.empty_strided(found.shape, found.stride, device="meta").is_contiguous():
        source = _on_grid(graph, graph.call_method("contiguous", (source,)), grid)
    return graph.call_function(torch.reshape, (source, (-1, *shape_of(node)[1:])))


def _is_float(node: fx.Node) -> bool:
    return bool(node.meta["tensor_meta"].dtype.is_floating_point)


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


def _put(integers: Any, read: tuple[Any, ...]) -> tuple[Any, ...]:
    """The grid that integers were put on; `read`, by which they are read, where they were not quantized here."""
    return integers.args[1:] if integers.target is OPS.quantize_per_tensor.default else read


def _other_grid(node: fx.Node) -> tuple[Any, ...] | None:
    """The grid that integers were put on, where it is not the one they are read by."""
    put = _put(node.args[0], node.args[1:])
    return None if put == node.args[1:] else put


def _scaled(model: fx.GraphModule, node: fx.Node, grid: tuple[Any, ...], name: str) -> fx.Node:
    """The same integers: `(q - z) s f / (s f)` is q - z to a few 2^-24 of it, and is rounded."""
    graph = model.graph
    value = graph.call_function(OPS.dequantize_per_tensor.default, (node.args[0], *grid))
    factor = buffer(model, f"{name}_factor", torch.tensor(node.args[1] / grid[0]))
    return _on_grid(graph, graph.call_function(torch.mul, (value, factor)), node.args[1:])


def _batches(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """The factors of a product, where all but their matrices is the same batch; None for any other product."""
    factors: Any = (argument(node, 0, "input", None), argument(node, 1, "other", None))
    if not batch_first(*factors):
        return None
    one, other = (shape_of(factor) for factor in factors)
    return factors if len(one) > 2 and one[:-2] == other[:-2] else None


def _multiplied(graph: fx.Graph, node: fx.Node, factors: tuple[fx.Node, fx.Node]) -> fx.Node:
    """`[N, *heads, L, d] @ [N, *heads, d, S]`, one matrix after the other."""

    def matrices(factor: fx.Node) -> fx.Node:
        whole = graph.call_method("contiguous", (factor,))
        return graph.call_function(torch.reshape, (whole, (-1, *shape_of(factor)[-2:])))

    if len(shape_of(node)) == 3:
        return graph.call_function(torch.bmm, factors)
    product = graph.call_function(torch.bmm, tuple(matrices(factor) for factor in factors))
    return graph.call_function(torch.reshape, (product, (-1, *shape_of(node)[1:])))


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


def _concatenated(graph: fx.Graph, quantizer: fx.Node, joined: fx.Node) -> fx.Node | None:
    """Each value is put on the grid before, where it was rounded behind; behind, it is rounded to itself."""
    grid, values = quantizer.args[1:], argument(joined, 0, "tensors", None)
    axis = STACKS.get(joined.target) if joined.target in STACKS else _axis(joined)
    if not isinstance(values, tuple | list) or axis is None or axis >= len(shape_of(joined)):
        return None
    together = [value if _grid(value) == grid else _on_grid(graph, value, grid) for value in values]
    return graph.call_function(
        OPS.quantize_per_tensor.default, (graph.call_function(torch.cat, (together, axis)), *grid)
    )


def _axis(joined: fx.Node) -> Any:
    return argument(joined, 1, "dim", joined.kwargs.get("axis", 0))


def _averaged(graph: fx.Graph, quantizer: fx.Node, pooled: fx.Node) -> fx.Node:
    reshaped: Any = quantizer.args[0]
    flat = graph.call_function(torch.reshape, (_on_grid(graph, pooled, quantizer.args[1:]), reshaped.args[1]))
    return graph.call_function(OPS.quantize_per_tensor.default, (flat, *quantizer.args[1:]))


def _padded(model: fx.GraphModule, node: fx.Node, around: tuple[int, int], name: str) -> fx.Node | None:
    """Padding happens on integers: around the convolution they are dequantized, and put on their grid again."""
    reader = next((u for u in node.users if u.target is OPS.dequantize_per_tensor.default), None)
    if reader is None:
        return None
    grid, graph = _put(node.args[0], reader.args[1:]), model.graph
    channels = shape_of(node.args[0])[1]
    weight = torch.cat([torch.zeros(around[0], channels), torch.eye(channels), torch.zeros(around[1], channels)])
    value = graph.call_function(OPS.dequantize_per_tensor.default, (node.args[0], *grid))
    value = unit_convolution(model, value, weight, (1, 1), 1, name)
    return graph.call_function(OPS.quantize_per_tensor.default, (value, *grid))
