"""`qat::dynamic_product` in ONNX: what onnxruntime runs as one DynamicQuantizeMatMul.

DynamicQuantizeLinear(x) -> q, s, z      MatMulInteger(q, w, z) -> Cast -> Mul by s * s_w
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from onnx import TensorProto
from onnxscript import opset21 as op

import qat.layers.dynamic  # noqa: F401 - defines the operator


def _dynamic_product(x: Any, weight: Any, weight_scale: Any) -> Any:
    q, scale, zero_point = op.DynamicQuantizeLinear(x)
    product = op.Cast(op.MatMulInteger(q, weight, zero_point), to=TensorProto.FLOAT)
    return op.Mul(product, op.Mul(scale, weight_scale))


def dynamic_translations() -> Mapping[Any, Any]:
    """For torch.onnx, by operator."""
    return {torch.ops.qat.dynamic_product.default: _dynamic_product}
