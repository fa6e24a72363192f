"""Attention as the products it is made of, so that each can be quantized.

    A = softmax(q k^T / sqrt(d) + mask)        q [..., L, d], k [..., S, d]
    y = A v                                    v [..., S, d_v]

Source: Vaswani et al. 2017, arXiv:1706.03762, equation 1. torch's own layers compute the same in one closed operator,
with float32's rounding as the only difference.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from qat.layers.adopt import adopt


def dot_product_attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """`F.scaled_dot_product_attention`, opened; tensors or proxies of them, `[..., L, d] -> [..., L, d_v]`."""
    if enable_gqa:
        raise NotImplementedError("grouped queries (enable_gqa=True) are not opened; keep the module in leaf_modules")
    scale = query.size(-1) ** -0.5 if scale is None else scale
    scores = torch.matmul(query * scale, key.transpose(-2, -1))  # [..., L, S]
    if is_causal:
        future = torch.ones_like(scores, dtype=torch.bool).triu(1)
        scores = scores.masked_fill(future, float("-inf"))
    if attn_mask is not None:
        scores = with_mask(scores, attn_mask)
    weights = F.softmax(scores, dim=-1)
    if dropout_p:
        weights = F.dropout(weights, dropout_p)
    return torch.matmul(weights, value)


def with_mask(scores: Any, mask: Any, *, keep: bool = True) -> Any:
    """Add a float mask, or drop where a boolean one is not `keep`."""
    if not isinstance(mask.dtype, torch.dtype):
        raise fx.proxy.TraceError("attention with a mask whose type is not known")
    if mask.dtype is torch.bool:
        return scores.masked_fill(mask.logical_not() if keep else mask, float("-inf"))
    return scores + mask


class OpenAttention(nn.MultiheadAttention):
    """`nn.MultiheadAttention` with its projections, products and softmax in plain sight of a tracer."""

    @classmethod
    def from_float(cls, layer: nn.MultiheadAttention) -> OpenAttention:
        """The layer with its own parameters.

        Raises:
            NotImplementedError: for extra key biases (`add_bias_kv`, `add_zero_attn`).
        """
        if not cls.opens(layer):
            raise NotImplementedError("add_bias_kv and add_zero_attn are not opened")
        return adopt(layer, cls)

    @staticmethod
    def opens(layer: nn.MultiheadAttention) -> bool:
        """Whether a layer is one without extra keys."""
        return layer.bias_k is None and not layer.add_zero_attn

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As the layer's own: `[N, L, E]` (`batch_first`) or `[L, N, E]`, and attention weights when asked for.

        The sequence needs a batch dimension. A causal hint is ignored, as the mask says the same.
        """
        if isinstance(query, Tensor) and query.ndim == 2:
            raise ValueError("attention needs a batch, [N, L, E]")
        inputs = self._project(query, key, value)
        q, k, v = (self._heads(x) for x in inputs)  # [N, heads, L, d]
        scores = torch.matmul(q * self.head_dim**-0.5, k.transpose(-2, -1))  # [N, heads, L, S]
        if attn_mask is not None:
            each = attn_mask.ndim == 3  # [N heads, L, S]
            scores = with_mask(scores, attn_mask.unflatten(0, (-1, self.num_heads)) if each else attn_mask, keep=False)
        if key_padding_mask is not None:
            scores = with_mask(scores, key_padding_mask.unsqueeze(1).unsqueeze(1), keep=False)
        weights = F.softmax(scores, dim=-1)
        if self.training and self.dropout:
            weights = F.dropout(weights, self.dropout)
        y = torch.matmul(weights, v).transpose(1, 2).flatten(2)  # [N, L, E]
        y = self.out_proj(y)
        if not self.batch_first:
            y = y.transpose(0, 1)
        if not need_weights:
            return y, None
        return y, weights.mean(1) if average_attn_weights else weights

    def _project(self, query: Any, key: Any, value: Any) -> list[Any]:
        """Projections `[N, L, E]` each; one product for self-attention."""
        bias = self.in_proj_bias
        if self._qkv_same_embed_dim and query is key and key is value:
            qkv = F.linear(self._batch_first(query), self.in_proj_weight, bias).chunk(3, dim=-1)
            return [qkv[0], qkv[1], qkv[2]]
        if self._qkv_same_embed_dim:
            weights = self.in_proj_weight.chunk(3)
        else:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases = (None, None, None) if bias is None else bias.chunk(3)
        inputs = (query, key, value)
        return [F.linear(self._batch_first(inputs[i]), weights[i], biases[i]) for i in range(3)]

    def _batch_first(self, x: Any) -> Any:
        return x if self.batch_first else x.transpose(0, 1)

    def _heads(self, x: Any) -> Any:
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
