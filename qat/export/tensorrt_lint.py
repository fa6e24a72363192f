"""The rules that TensorRT documents for explicit quantization, checked on an ONNX file without TensorRT.

    zero points                 all 0: quantization is symmetric
    activations                 int8, one positive scale for the tensor
    weights                     int8, one scale, or one for each output channel
    biases                      in float, without quantize or dequantize
    additions                   both inputs quantized when one is, or the sum leaves the convolution before it
    convolutions                with the attribute kernel_shape

Source: NVIDIA TensorRT developer guide, "Working with Quantized Types" (explicit quantization, Q/DQ placement).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

BIASED = ("Conv", "ConvTranspose", "Gemm")
CHANNELS = {"Conv": 0, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1}  # the axis of a weight's output channels


def tensorrt_findings(path: str | Path) -> tuple[str, ...]:
    """What in an ONNX file breaks a rule, one sentence each; empty when TensorRT has nothing to object to."""
    graph = onnx.load(path).graph
    constants = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    made_by = {output: node for node in graph.node for output in node.output}
    found: list[str] = []
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            found += _grid(node, constants)
        if node.op_type in CHANNELS and len(node.input) > 1:
            found += _channels(node, made_by, constants)
        if node.op_type in BIASED and len(node.input) > 2 and node.input[2] in made_by:
            found.append(f"{_name(node)}: its bias comes from {made_by[node.input[2]].op_type}; store it in float")
        if node.op_type == "Conv" and "kernel_shape" not in {a.name for a in node.attribute}:
            found.append(f"{_name(node)}: has no kernel_shape")
        if node.op_type == "Add":
            found += _addition(node, made_by, constants)
    return tuple(found)


def _grid(node: onnx.NodeProto, constants: dict[str, np.ndarray]) -> Iterator[str]:
    scale = constants.get(node.input[1])
    if scale is None:
        yield f"{_name(node)}: its scale is computed; it must be a constant"
    elif not (np.isfinite(scale).all() and (scale > 0).all()):
        yield f"{_name(node)}: its scale is not positive and finite"
    elif scale.ndim and node.op_type == "QuantizeLinear":
        yield f"{_name(node)}: one scale for each channel of an activation; it takes one for the tensor"
    zero = constants.get(node.input[2]) if len(node.input) > 2 else None
    if zero is not None and zero.any():
        yield f"{_name(node)}: zero point {zero.ravel()[zero.ravel() != 0][0]}; it must be 0"
    if zero is not None and zero.dtype not in (np.int8, np.int32):
        yield f"{_name(node)}: stores {zero.dtype}; it takes int8"


def _channels(
    node: onnx.NodeProto, made_by: dict[str, onnx.NodeProto], constants: dict[str, np.ndarray]
) -> Iterator[str]:
    """A weight with one scale for each channel has it along the channels that the layer puts out."""
    need, weight = CHANNELS[node.op_type], made_by.get(node.input[1])
    if node.op_type == "Gemm" and any(a.name == "transB" and a.i for a in node.attribute):
        need = 1 - need
    if weight is not None and weight.op_type == "Transpose":  # of a matrix
        need, weight = 1 - need, made_by.get(weight.input[0])
    if weight is None or weight.op_type != "DequantizeLinear" or weight.input[0] not in constants:
        return
    scale, stored = constants.get(weight.input[1]), constants[weight.input[0]]
    axis = next((a.i for a in weight.attribute if a.name == "axis"), 1) % stored.ndim
    if scale is not None and scale.ndim and axis != need:
        yield f"{_name(node)}: its weight has a scale for each index of axis {axis}; it takes axis {need}"


def _addition(
    node: onnx.NodeProto, made_by: dict[str, onnx.NodeProto], constants: dict[str, np.ndarray]
) -> Iterator[str]:
    dynamic = [value for value in node.input if value not in constants]
    quantized = [value in made_by and made_by[value].op_type == "DequantizeLinear" for value in dynamic]
    if any(quantized) and not all(quantized):
        yield f"{_name(node)}: input {dynamic[quantized.index(False)]} is not quantized, the other is"


def _name(node: onnx.NodeProto) -> str:
    return f"{node.op_type} {node.name or node.output[0]}"
