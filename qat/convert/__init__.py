"""From a trained fake-quant model to its integer model: int8 buffers and explicit quantize / dequantize pairs.

    conv(dq(x), dq(w)) + bias  ->  q           x uint8, w int8 with BatchNorm folded in, bias int32 at scale s_x * s_w

The result is a plain `fx.GraphModule` of `quantized_decomposed` operators, the representation that the ONNX exporter,
Inductor and ExecuTorch read. Every value on a grid is stored once as integers; every reader dequantizes it for itself,
so that a runtime can take each operator with its own pair. An activation that the grid's ends already are is left out.
"""

from __future__ import annotations

from torch import fx

from qat.convert.converter import Converter
from qat.convert.folding import folded
from qat.convert.graph import OPS
from qat.convert.modules import integer_modules
from qat.errors import PlacementError
from qat.placement.modules import PreparedModules
from qat.placement.prepared import PreparedModel

__all__ = ["OPS", "convert", "folded"]


def convert(prepared: PreparedModel) -> fx.GraphModule:
    """The integer model, as a copy; `prepared` is untouched and can go on training.

    One that was prepared by modules becomes its own class again, with integer layers in it, and no graph.

    Args:
        prepared: a calibrated (and usually trained) model from `qat.prepare`.

    Raises:
        CalibrationError: a quantizer whose range was never observed.
        NumericsError: NaN or Inf in a weight or range.
    """
    if not isinstance(prepared, PreparedModel):
        raise PlacementError(f"convert needs a model from qat.prepare, got {type(prepared).__name__}")
    return integer_modules(prepared) if isinstance(prepared, PreparedModules) else Converter(prepared).run()
