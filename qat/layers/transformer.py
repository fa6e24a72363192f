"""torch's transformer layers without their closed operator, so that what they compute can be traced and quantized.

    x = x + attention(norm1(x));  x = x + W_2 act(W_1 norm2(x))          norm_first
    x = norm1(x + attention(x));  x = norm2(x + W_2 act(W_1 x))          otherwise

In evaluation torch's encoder layer hands its parameters to one closed operator, past the modules that own them: a layer
swapped in there is never called, and its integer weights would be taken for float ones. Positions that a padding mask
drops hold what training mode computes for them. Source of the formulas: Xiong et al. 2020, arXiv:2002.04745, figure 1.
"""

from __future__ import annotations

from torch import Tensor, nn

from qat.layers.adopt import adopt
from qat.layers.attention import OpenAttention


class OpenEncoderLayer(nn.TransformerEncoderLayer):
    """`nn.TransformerEncoderLayer` that calls its modules in both modes."""

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """As the layer's own, `[N, L, E]` or `[L, N, E]`; a causal hint is ignored, as the mask says the same."""
        if self.norm_first:
            x = src + self._sa_block(self.norm1(src), src_mask, src_key_padding_mask)
            return x + self._ff_block(self.norm2(x))
        x = self.norm1(src + self._sa_block(src, src_mask, src_key_padding_mask))
        return self.norm2(x + self._ff_block(x))


class OpenDecoderLayer(nn.TransformerDecoderLayer):
    """`nn.TransformerDecoderLayer`, whose own forward calls its modules, under a name that a tracer enters."""


class OpenEncoder(nn.TransformerEncoder):
    """`nn.TransformerEncoder` as the loop that it is, without nested tensors."""

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,
    ) -> Tensor:
        """As the encoder's own, `[N, L, E]` or `[L, N, E]`."""
        for layer in self.layers:
            src = layer(src, src_mask=mask, src_key_padding_mask=src_key_padding_mask)
        return src if self.norm is None else self.norm(src)


class OpenDecoder(nn.TransformerDecoder):
    """`nn.TransformerDecoder` as the loop that it is; it does not look whether a mask is causal."""

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
    ) -> Tensor:
        """As the decoder's own, `[N, T, E]` and `[N, L, E]`, or with N second."""
        for layer in self.layers:
            tgt = layer(tgt, memory, tgt_mask, memory_mask, tgt_key_padding_mask, memory_key_padding_mask)
        return tgt if self.norm is None else self.norm(tgt)


class OpenTransformer(nn.Transformer):
    """`nn.Transformer` without its questions about sizes."""

    def forward(
        self,
        src: Tensor,
        tgt: Tensor,
        src_mask: Tensor | None = None,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        src_is_causal: bool | None = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
    ) -> Tensor:
        """As the transformer's own, `[N, L, E]` and `[N, T, E]`, or with N second."""
        memory = self.encoder(src, src_mask, src_key_padding_mask)
        y: Tensor = self.decoder(tgt, memory, tgt_mask, memory_mask, tgt_key_padding_mask, memory_key_padding_mask)
        return y


OPEN: dict[type[nn.Module], type[nn.Module]] = {
    nn.MultiheadAttention: OpenAttention,
    nn.TransformerEncoderLayer: OpenEncoderLayer,
    nn.TransformerDecoderLayer: OpenDecoderLayer,
    nn.TransformerEncoder: OpenEncoder,
    nn.TransformerDecoder: OpenDecoder,
    nn.Transformer: OpenTransformer,
}


def open_attention(root: nn.Module) -> nn.Module:
    """`root` with torch's attention and transformer layers opened; `add_bias_kv` and `add_zero_attn` stay whole.

    Classes derived from torch's keep their own forward, and do not take the closed operator. Tied layers stay tied.
    """
    modules = list(root.modules())
    opened = {m: adopt(m, OPEN[type(m)]) for m in modules if type(m) in OPEN and _openable(m)}
    for module in (*modules, *opened.values()):
        for name, child in module._modules.items():
            if child in opened:
                module._modules[name] = opened[child]
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0  # the activations that the closed operator knows
        elif isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
    return opened.get(root, root)


def _openable(module: nn.Module) -> bool:
    return not isinstance(module, nn.MultiheadAttention) or OpenAttention.opens(module)
