"""A linear layer with a fake-quantized weight."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from qat.layers.weighted import FakeQuantWeight


class FakeQuantLinear(FakeQuantWeight, nn.Linear):
    """`nn.Linear`, weight `[C_out, C_in]` on a grid."""

    def forward(
        self,
        x: Tensor,
        norm_weight: Tensor | None = None,
        norm_var: Tensor | None = None,
        input_scale: Tensor | None = None,
    ) -> Tensor:
        """`[..., C_in] -> [..., C_out]`."""
        return F.linear(x, self.quantized_weight(norm_weight, norm_var), self.integer_bias(input_scale))
