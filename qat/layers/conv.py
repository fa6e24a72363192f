"""Convolutions with a fake-quantized weight. What follows (BatchNorm, activation, quantizer) is not theirs."""

from __future__ import annotations

from torch import Tensor, nn

from qat.layers.weighted import FakeQuantWeight


class FakeQuantConv1d(FakeQuantWeight, nn.Conv1d):
    """`nn.Conv1d`, weight `[C_out, C_in / groups, K]` on a grid."""

    def forward(
        self,
        x: Tensor,
        norm_weight: Tensor | None = None,
        norm_var: Tensor | None = None,
        input_scale: Tensor | None = None,
    ) -> Tensor:
        """`[N, C_in, L] -> [N, C_out, L']`."""
        return self._conv_forward(x, self.quantized_weight(norm_weight, norm_var), self.integer_bias(input_scale))


class FakeQuantConv2d(FakeQuantWeight, nn.Conv2d):
    """`nn.Conv2d`, weight `[C_out, C_in / groups, kH, kW]` on a grid."""

    def forward(
        self,
        x: Tensor,
        norm_weight: Tensor | None = None,
        norm_var: Tensor | None = None,
        input_scale: Tensor | None = None,
    ) -> Tensor:
        """`[N, C_in, H, W] -> [N, C_out, H', W']`."""
        return self._conv_forward(x, self.quantized_weight(norm_weight, norm_var), self.integer_bias(input_scale))


class FakeQuantConv3d(FakeQuantWeight, nn.Conv3d):
    """`nn.Conv3d`, weight `[C_out, C_in / groups, kD, kH, kW]` on a grid."""

    def forward(
        self,
        x: Tensor,
        norm_weight: Tensor | None = None,
        norm_var: Tensor | None = None,
        input_scale: Tensor | None = None,
    ) -> Tensor:
        """`[N, C_in, D, H, W] -> [N, C_out, D', H', W']`."""
        return self._conv_forward(x, self.quantized_weight(norm_weight, norm_var), self.integer_bias(input_scale))
