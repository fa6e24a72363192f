"""A layer with a fake-quantized weight.

Per channel, the weight is quantized as it is, and folding of a following BatchNorm commutes with that. One scale for
the whole weight does not commute, so there the *folded* weight is quantized, and divided by the fold factor again:

    w' = Q(w * f) / f          f = gamma / sqrt(var + eps), one per output channel, at its running value

The weight is small, the output is large: dividing the weight is the cheap side. Source: DESIGN, BatchNorm; for the
folded training graph Jacob et al. 2018, arXiv:1712.05877, section 3.2.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from qat.functional.folding import fold_factor, round_bias
from qat.layers.adopt import adopt
from qat.quantizers import FakeQuantize


class FakeQuantWeight(nn.Module):
    """Mixin: the weight of a convolution or linear layer behind a quantizer.

    `norm_eps` is the eps of the BatchNorm whose factor is folded into the weight before quantizing; None when the
    weight is quantized as it is.
    """

    weight: Tensor
    bias: Any  # Tensor `[C_out]` or None
    weight_quantizer: FakeQuantize
    norm_eps: float | None

    @classmethod
    def from_float(cls, layer: nn.Module, weight_quantizer: FakeQuantize, *, norm_eps: float | None = None):  # noqa: D102
        new = adopt(layer, cls)
        new.weight_quantizer = weight_quantizer
        weight_quantizer.for_weights()
        new.norm_eps = norm_eps
        return new

    def fold(self, norm_weight: Tensor | None, norm_var: Tensor) -> Tensor:
        """Fold factor for the weight, `[C_out, 1, ...]`, never zero: a dead channel keeps its sign and a tiny size."""
        assert self.norm_eps is not None
        gamma = torch.ones_like(norm_var) if norm_weight is None else norm_weight.detach()
        factor = fold_factor(gamma, norm_var, self.norm_eps)
        tiny = torch.finfo(factor.dtype).tiny ** 0.25  # small enough to round to 0, large enough to divide by
        factor = torch.where(factor.abs() < tiny, torch.full_like(factor, tiny), factor)
        return factor.view(-1, *[1] * (self.weight.ndim - 1))

    def kept_weight(self) -> Tensor:
        """The weight before its quantizer: zero where it is pruned (pruned.py)."""
        mask = self._buffers.get("weight_mask")
        if mask is None:
            return self.weight
        pruned = self._parameters.get("weight_orig")  # by torch, after it was prepared
        return (self.weight if pruned is None else pruned) * mask

    def quantized_weight(self, norm_weight: Tensor | None = None, norm_var: Tensor | None = None) -> Tensor:
        """The weight as the integers say it, shape and dtype of `weight`."""
        weight = self.kept_weight()
        if norm_var is None:
            return self.weight_quantizer(weight)
        factor = self.fold(norm_weight, norm_var)
        if not self.weight_quantizer.enabled:  # w * f / f is not w to the last bit
            if self.weight_quantizer.learning:
                self.weight_quantizer.observe(weight * factor)
            return weight
        return self.weight_quantizer(weight * factor) / factor

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """That of a pruned float layer too, which has `weight_orig`."""
        orig, mask = f"{prefix}weight_orig", f"{prefix}weight_mask"
        if orig in state_dict and "weight_orig" not in self._parameters and "weight_mask" in self._buffers:
            state_dict[f"{prefix}weight"] = state_dict.pop(orig) * state_dict[mask]
        super()._load_from_state_dict(state_dict, prefix, *args)

    def integer_bias(self, input_scale: Tensor | None) -> Tensor | None:
        """The bias `[C_out]` as an int32 at scale `input_scale * s_w` says it; as it is while quantizers are off."""
        if input_scale is None or self.bias is None or not self.weight_quantizer.enabled:
            return self.bias
        return round_bias(self.bias, input_scale * self.weight_quantizer.scale)
