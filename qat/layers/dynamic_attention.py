"""Attention whose projections run on integers; the products between activations and the softmax stay in float.

    q, k, v = projections of the input, one product for self-attention
    y = out_proj(softmax(q k^T / sqrt(d)) v)

Both factors of q k^T and of the product with v are activations: quantizing them at every call costs more than their
small products save, which is why runtimes' own dynamic quantizers leave them in float too.
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from qat.layers.adopt import adopt
from qat.layers.attention import OpenAttention
from qat.layers.dynamic import DynamicProduct

PROJECTIONS = ("q_proj_weight", "k_proj_weight", "v_proj_weight")


class DynamicAttention(OpenAttention):
    """`nn.MultiheadAttention` with integer projections; `out_proj` is a layer of its own, and swapped as one.

    `in_proj_bias` is None to everyone: torch's closed encoder layer asks for it, and would compute from float weights.
    """

    input_bias: Tensor | None
    products: nn.ModuleDict

    @classmethod
    def of(cls, layer: nn.MultiheadAttention, products: dict[str, DynamicProduct]) -> DynamicAttention:
        """The layer with `products` in place of the parameters that they are named after."""
        new = adopt(layer, cls)
        bias = layer.in_proj_bias
        for name in ("in_proj_weight", *PROJECTIONS, "in_proj_bias"):
            new._parameters.pop(name, None)
        for name in ("in_proj_weight", *PROJECTIONS, "in_proj_bias"):
            new.register_parameter(name, None)
        new.products = nn.ModuleDict({name.removesuffix("_weight"): product for name, product in products.items()})
        new.register_buffer("input_bias", None if bias is None else bias.detach().clone())
        return new

    def _project(self, query: Any, key: Any, value: Any) -> list[Any]:
        """Projections `[N, L, E]` each."""
        inputs = [self._batch_first(x) for x in (query, key, value)]
        bias, width = self.input_bias, self.embed_dim
        biases = [None] * 3 if bias is None else bias.chunk(3)
        if not self._qkv_same_embed_dim:
            made = [self.products[f"{which}_proj"](x) for which, x in zip("qkv", inputs, strict=True)]
        elif query is key and key is value:
            made = list(self.products["in_proj"](inputs[0]).chunk(3, dim=-1))
        else:
            whole = cast(DynamicProduct, self.products["in_proj"])
            made = [whole.product(x, i * width, (i + 1) * width) for i, x in enumerate(inputs)]
        return [y if b is None else y + b for y, b in zip(made, biases, strict=True)]
