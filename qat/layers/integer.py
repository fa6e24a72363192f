"""A convolution or linear layer on integers, as a module: what a layer that stands alone is converted to.

y = f(dq(q(x)), dq(w)) + dq(b)        x uint8 or int8, w int8, b int32 at scale s_x * s_w
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed
from torch import Tensor, nn

OPS = torch.ops.quantized_decomposed


class IntegerLayer(nn.Module):
    """Quantizes its input, computes on integers, answers in float.

    Args:
        function: of input, weight and bias.
        weight: integers `[C_out, ...]`, their scale (scalar or `[C_out]`) and ends.
        bias: int32 `[C_out]`, or None.
        grid: scale, zero point, ends and type of the input's integers.
    """

    weight: Tensor
    weight_scale: Tensor
    weight_zero_point: Tensor
    bias: Tensor | None

    def __init__(
        self,
        function: Callable[[Tensor, Tensor, Tensor | None], Tensor],
        weight: tuple[Tensor, Tensor, int, int],
        bias: Tensor | None,
        grid: tuple[float, int, int, int, torch.dtype],
    ) -> None:
        super().__init__()
        self.function, self.grid = function, grid
        q, scale, *self.ends = weight
        self.register_buffer("weight", q)
        self.register_buffer("weight_scale", scale if scale.ndim else scale.expand(len(q)).clone())
        self.register_buffer("weight_zero_point", torch.zeros_like(self.weight_scale, dtype=torch.int8))
        self.register_buffer("bias", bias)

    def forward(self, input: Tensor) -> Tensor:
        """Shape of the float layer's output."""
        q = OPS.quantize_per_tensor.default(input, *self.grid)
        x = OPS.dequantize_per_tensor.default(q, *self.grid)
        weight = self._dequantized(self.weight, self.weight_scale, self.weight_zero_point, *self.ends)
        bias = None
        if self.bias is not None:
            limits = torch.iinfo(torch.int32)
            bias = self._dequantized(self.bias, self.weight_scale * self.grid[0], None, limits.min + 1, limits.max)
        return self.function(x, weight, bias)

    @staticmethod
    def _dequantized(q: Any, scale: Any, zero: Any, qmin: int, qmax: int) -> Tensor:
        return OPS.dequantize_per_channel.default(q, scale, zero, 0, qmin, qmax, q.dtype)
