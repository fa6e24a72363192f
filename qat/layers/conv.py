"""Convolutions with a fake-quantized weight. What follows (BatchNorm, activation, quantizer) is not theirs."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from qat.layers.weighted import FakeQuantWeight


class _Convolution(FakeQuantWeight):
    _conv_forward: Any  # of nn.Conv*d: padding, and the operator on input, weight, bias

    def forward(
        self,
        x: Tensor,
        norm_weight: Tensor | None = None,
        norm_var: Tensor | None = None,
        input_scale: Tensor | None = None,
    ) -> Tensor:
        """Shape of the float layer's output."""
        return self._conv_forward(x, self.quantized_weight(norm_weight, norm_var), self.integer_bias(input_scale))


class FakeQuantConv1d(_Convolution, nn.Conv1d):
    """`nn.Conv1d`, `[N, C_in, L] -> [N, C_out, L']`; weight `[C_out, C_in / groups, K]` on a grid."""


class FakeQuantConv2d(_Convolution, nn.Conv2d):
    """`nn.Conv2d`, `[N, C_in, H, W] -> [N, C_out, H', W']`; weight `[C_out, C_in / groups, kH, kW]` on a grid."""


class FakeQuantConv3d(_Convolution, nn.Conv3d):
    """`nn.Conv3d`, `[N, C_in, D, H, W] -> [N, C_out, D', H', W']`; weight `[C_out, C_in / groups, kD, kH, kW]`."""
