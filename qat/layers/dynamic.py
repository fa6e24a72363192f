"""A linear layer with integer weights that quantizes what it reads at every call (functional/dynamic.py).

y = dynamic_product(x, w) + b       w int8 [C_in, C_out], b float32

The product is one operator to torch.export, `qat::dynamic_product`, which export/dynamic.py writes as
DynamicQuantizeLinear and MatMulInteger.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from qat.functional.dynamic import dynamic_product


@torch.library.custom_op("qat::dynamic_product", mutates_args=())
def _product(x: Tensor, weight: Tensor, weight_scale: Tensor) -> Tensor:
    return dynamic_product(x, weight, weight_scale)


@_product.register_fake
def _(x: Tensor, weight: Tensor, weight_scale: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[1]))


class DynamicProduct(nn.Module):
    """A stored integer matrix, without a bias: `[..., C_in] -> [..., C_out]`.

    Args:
        q: integers `[C_out, C_in]`, as a float layer holds its weight.
        scale: of each row `[C_out]`, or of all of them.
    """

    weight_integers: Tensor
    weight_scale: Tensor

    def __init__(self, q: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight_integers", q.t().contiguous())  # [C_in, C_out], as the runtime reads it
        self.register_buffer("weight_scale", (scale if scale.ndim else scale.expand(len(q))).clone())

    def forward(self, x: Tensor) -> Tensor:
        """`[..., C_in] -> [..., C_out]`."""
        return self.product(x)

    def product(self, x: Tensor, start: int = 0, end: int | None = None) -> Tensor:
        """The product with output channels `start` to `end` alone."""
        q, scale = self.weight_integers, self.weight_scale
        if start or end is not None:
            q, scale = q[:, start:end], scale[start:end]
        return cast(Tensor, torch.ops.qat.dynamic_product(x, q, scale))

    def extra_repr(self) -> str:
        """Sizes, as `nn.Linear` says them."""
        inputs, outputs = self.weight_integers.shape
        return f"in_features={inputs}, out_features={outputs}"


class DynamicLinear(DynamicProduct):
    """`nn.Linear` on integers, its input's range taken when it runs."""

    bias: Tensor | None

    def __init__(self, q: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        super().__init__(q, scale)
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """`[..., C_in] -> [..., C_out]`."""
        y = self.product(x)
        return y if self.bias is None else y + self.bias
