"""Weights of 4 bits and fewer, two to a byte: ONNX INT4, read through a Cast to INT8.

    INT4 initializer -> Cast(INT8) -> DequantizeLinear -> Conv

Not DequantizeLinear of the INT4 itself: onnxruntime 1.32 has no product of u8 and s4, so it leaves such a convolution
in float (ResNet-20, batch 16, one thread: 31.8 ms). It folds the Cast when it loads the file, and then runs the same
integer kernels as for INT8 weights (7.4 ms, the same bits). Narrower integers are stored in 4 bits too; ONNX has no
narrower type before opset 25.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

OPSET = 21  # the first with INT4
LOWEST, HIGHEST = -8, 7


def pack_weights(model: ir.Model) -> int:
    """Store every int8 constant with integers of -8 .. 7 that a DequantizeLinear reads as INT4; returns how many."""
    graph, count = model.graph, 0
    for node in [n for n in graph if n.op_type == "DequantizeLinear"]:
        value = node.inputs[0]
        if value is None or value.const_value is None or value.const_value.dtype is not ir.DataType.INT8:
            continue
        integers = value.const_value.numpy()
        if integers.ndim < 2 or integers.min() < LOWEST or integers.max() > HIGHEST:
            continue
        _pack(graph, node, value, integers)
        count += 1
    return count


def _pack(graph: ir.Graph, reader: ir.Node, value: ir.Value, integers: np.ndarray) -> None:
    name = f"{value.name}_int4"
    packed = ir.Value(
        name=name,
        const_value=ir.tensor(integers.astype(ir.DataType.INT4.numpy()), dtype=ir.DataType.INT4, name=name),
        shape=value.shape,
        type=ir.TensorType(ir.DataType.INT4),
    )
    graph.register_initializer(packed)
    widen = ir.node("Cast", [packed], {"to": ir.DataType.INT8})
    widen.name, widen.outputs[0].name = None, f"{value.name}_int8"
    widen.outputs[0].shape, widen.outputs[0].type = value.shape, ir.TensorType(ir.DataType.INT8)
    graph.insert_before(reader, widen)
    reader.replace_input_with(0, widen.outputs[0])
    if not value.uses():
        del graph.initializers[value.name or ""]
