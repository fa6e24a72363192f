"""A functional convolution or linear layer with a fake-quantized weight: the weight comes with every call."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from qat.errors import PlacementError
from qat.functional.folding import round_bias
from qat.quantizers import FakeQuantize

KNOWN = ("linear", "conv1d", "conv2d", "conv3d")


class FakeQuantFunction(nn.Module):
    """`F.linear` or `F.conv{1,2,3}d` as a module, weight `[C_out, ...]` on a grid.

    Args:
        name: the function's name in `torch.nn.functional`.
        weight_quantizer: of the weight.
    """

    def __init__(self, name: str, weight_quantizer: FakeQuantize) -> None:
        super().__init__()
        if name not in KNOWN:
            raise PlacementError(f"no quantized form of torch.nn.functional.{name}; known: {', '.join(KNOWN)}")
        self.name = name
        self.weight_quantizer = weight_quantizer
        weight_quantizer.for_weights()

    def forward(
        self, x: Tensor, weight: Tensor, bias: Tensor | None = None, *settings: Any, input_scale: Tensor | None = None
    ) -> Tensor:
        """As the function; the bias is that of an int32 at scale `input_scale * s_w` while quantizers are on."""
        quantized = self.weight_quantizer(weight)
        if bias is not None and input_scale is not None and self.weight_quantizer.enabled:
            bias = round_bias(bias, input_scale * self.weight_quantizer.scale)
        return getattr(F, self.name)(x, quantized, bias, *settings)

    def extra_repr(self) -> str:
        """The function."""
        return self.name
