"""Linear layers of `[N, ..., C]` as products of rows, so that onnxruntime has one integer kernel for them.

    integers [N, T, C] -> reshape [N T, C] -> linear -> integers [N T, C_out] -> reshape [N, T, C_out]

onnxruntime fuses dequantize, product, bias and quantize into QGemm, but of matrices alone: of more dimensions it makes
a product with a float result (MatMulIntegerToFloat), a float addition of the bias, and a QuantizeLinear. Same values:
the rows of a product know nothing of each other. Only where the examples come first: `[T, N, C]` of sequence-first
networks would have the N of the example inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch.nn import functional as F

from qat.export.bias import OPS, tidied
from qat.export.copies import batch_first, shape_of, with_batch_axes

DEQUANTIZE, QUANTIZE = OPS.dequantize_per_tensor.default, OPS.quantize_per_tensor.default


def as_rows(integer: fx.GraphModule, inputs: Sequence[Any]) -> fx.GraphModule:
    """A copy whose linear layers between integers read and write matrices.

    Args:
        integer: an integer model.
        inputs: example inputs, `[N, ...]`; their shapes decide.
    """
    linears = [n for n in integer.graph.nodes if _between_integers(n)]
    if not linears:
        return integer
    model = with_batch_axes(integer, inputs)
    for node in list(model.graph.nodes):
        if _between_integers(node) and len(shape_of(node)) > 2 and batch_first(node):
            _flattened(model.graph, node)
    return tidied(model)


def _between_integers(node: fx.Node) -> bool:
    if node.target is not F.linear or len(node.users) != 1:
        return False
    source: Any = node.args[0]
    return source.target is DEQUANTIZE and next(iter(node.users)).target is QUANTIZE


def _flattened(graph: fx.Graph, linear: fx.Node) -> None:
    source: Any = linear.args[0]
    quantizer = next(iter(linear.users))
    shape = shape_of(linear)
    with graph.inserting_before(linear):
        width = shape_of(source)[-1]
        rows = graph.call_function(torch.reshape, (source.args[0], (-1, width)))
        linear.update_arg(0, graph.call_function(DEQUANTIZE, (rows, *source.args[1:])))
    with graph.inserting_after(quantizer):
        back = graph.call_function(torch.reshape, (quantizer, (-1, *shape[1:])))
    quantizer.replace_all_uses_with(back, delete_user_cb=lambda user: user is not back)
