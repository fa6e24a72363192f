"""Weights that are integers in the file and floats when it is loaded.

    INT8 initializer -> Cast(FLOAT) -> Mul(scale) -> any operator

Not DequantizeLinear: onnxruntime 1.32 makes a MatMulNBits of it and a MatMul, which rounds activations to 8 bits of its
own (0.5 % of the largest output), and before any other operator it would compute it at every call. A Cast and a Mul of
constants it computes once, when it loads the file: the speed and the results of float.
"""

from __future__ import annotations

import onnx_ir as ir


def read_when_loaded(model: ir.Model) -> int:
    """Turn each DequantizeLinear of a stored weight into Cast and Mul; returns how many."""
    graph, count = model.graph, 0
    for node in [n for n in graph if n.op_type == "DequantizeLinear"]:
        scale, axis = node.inputs[1], node.attributes.get_int("axis", 1)
        weight = node.outputs[0]
        assert scale is not None
        assert scale.const_value is not None
        steps = scale.const_value.numpy()
        rank = _rank(node.inputs[0])
        if steps.ndim and rank is not None:
            steps = steps.reshape([-1 if i == axis % rank else 1 for i in range(rank)])
        name = f"{scale.name}_stored"
        wide = ir.Value(name=name, const_value=ir.tensor(steps, name=name))
        wide.shape, wide.type = ir.Shape(steps.shape), ir.TensorType(ir.DataType.FLOAT)
        graph.register_initializer(wide)
        cast = ir.node("Cast", [node.inputs[0]], {"to": ir.DataType.FLOAT})
        scaled = ir.node("Mul", [cast.outputs[0], wide])
        cast.outputs[0].name, scaled.outputs[0].name = f"{weight.name}_steps", f"{weight.name}_float"
        graph.insert_before(node, [cast, scaled])
        ir.convenience.replace_all_uses_with(weight, scaled.outputs[0])
        graph.remove(node, safe=True)
        count += 1
    for unused in [n for n, value in graph.initializers.items() if not value.uses()]:
        del graph.initializers[unused]
    return count


def _rank(value: ir.Value | None) -> int | None:
    return len(value.shape) if value is not None and value.shape is not None else None
