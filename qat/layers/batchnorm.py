"""BatchNorm that ends in a clamping activation and a quantizer: one fused function where that is exact.

With the quantizer switched off the layer is the float BatchNorm and the float activation, bit for bit.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qat.functional.across import several
from qat.functional.epilogue import Norm, Quant, norm_act_quant
from qat.functional.folding import fold_bias, fold_factor, round_bias
from qat.functional.regional import regional_norm_act_quant
from qat.functional.ste import Clamp
from qat.functional.synced import synced_norm
from qat.layers.adopt import adopt
from qat.observers import Observer
from qat.quantizers import FakeQuantize, ObservedFakeQuantize


class _FakeQuantBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Mixin for `nn.BatchNorm{1,2,3}d`.

    Attributes:
        activation: the clamp between BatchNorm and quantizer.
        output_quantizer: the tensor-wise quantizer of the result; None where the result is not rounded, because what
            follows runs in the same operator: the layer is here for `rounded_bias` alone then.
        enabled: without a quantizer, whether the bias is rounded; `qat.fake_quant` switches it.
        regional: whether the fused function runs in compiled loops; see `qat.compile_regions`.
        synced: whether training normalises by the batches of all processes, as `nn.SyncBatchNorm`.
    """

    activation: Clamp
    output_quantizer: FakeQuantize | None
    enabled = True
    regional = False
    synced = False

    @classmethod
    def from_float(cls, norm: nn.Module, activation: Clamp, output_quantizer: FakeQuantize | None):
        new = adopt(norm, cls)
        new.activation = activation
        new.output_quantizer = output_quantizer
        return new

    def _fuses(self) -> bool:
        """Whether one function may stand for all three parts."""
        quantizer = self.output_quantizer
        plain = type(quantizer) is ObservedFakeQuantize and quantizer.enabled and not quantizer.shape
        return plain and self._complete and not self._joins()

    @property
    def _complete(self) -> bool:
        """Whether there are a weight, a bias and running statistics."""
        return self.affine and self.track_running_stats

    def _joins(self) -> bool:
        """Whether other processes' batches count now."""
        return self.synced and self.training and self._complete and several()

    def forward(
        self,
        x: Tensor,
        input_scale: Tensor | None = None,
        weight_scale: Tensor | None = None,
        layer_bias: Tensor | None = None,
    ) -> Tensor:
        """`[N, C, ...] -> [N, C, ...]`; the scales and bias are those of the layer before, for `rounded_bias`."""
        if self.training and not self._joins() and x.numel() == x.size(1):
            raise ValueError(  # as torch's own: the variance of one value would be NaN, and stay so
                f"Expected more than 1 value per channel when training, got input size {x.shape}: leave the last "
                "batch out with drop_last=True, or choose a batch size that leaves no single example"
            )
        if not self._fuses():
            y = self._normalized(x, input_scale, weight_scale, layer_bias)
            return y if self.output_quantizer is None else self.output_quantizer(y, self.activation)
        quantizer = cast(ObservedFakeQuantize, self.output_quantizer)
        learning = quantizer.learning
        spec = quantizer.spec
        ends_suffice = not learning or type(quantizer.observer).observe is Observer.observe
        run = regional_norm_act_quant if self.regional and ends_suffice else norm_act_quant
        y = run(
            x.float(),
            self._norm(self.rounded_bias(input_scale, weight_scale, layer_bias)),
            self.activation,
            Quant(quantizer.scale, quantizer.zero_point, spec.qmin, spec.qmax),
            (lambda n: quantizer.observe(n, self.activation)) if learning else None,
        )
        return y.to(x.dtype)

    def _normalized(
        self, x: Tensor, input_scale: Tensor | None, weight_scale: Tensor | None, layer_bias: Tensor | None
    ) -> Tensor:
        """BatchNorm alone, in front of a quantizer that is a module of its own: one with a trained range, say."""
        if self._joins():
            return synced_norm(x.float(), self._norm(self.bias)).to(x.dtype)
        enabled = self.enabled if self.output_quantizer is None else self.output_quantizer.enabled
        if self.training or not enabled or not self._complete:
            return super().forward(x)
        bias = self.rounded_bias(input_scale, weight_scale, layer_bias)
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, bias, False, 0.0, self.eps)

    def rounded_bias(
        self, input_scale: Tensor | None, weight_scale: Tensor | None, layer_bias: Tensor | None
    ) -> Tensor:
        """The bias `[C]` such that the folded one is an integer at scale `input_scale * weight_scale`, as deployed.

        Only where running statistics normalise; those of a batch are never folded.
        """
        if input_scale is None or weight_scale is None or self.training:
            return self.bias
        with torch.no_grad():
            mean, var = cast(Tensor, self.running_mean), cast(Tensor, self.running_var)
            factor = fold_factor(self.weight, var, self.eps)
            folded = fold_bias(layer_bias, mean, self.bias, factor)
            scale = weight_scale * factor.abs() if weight_scale.ndim else weight_scale
            change = round_bias(folded, scale * input_scale) - folded
        return self.bias + change

    def _norm(self, bias: Tensor) -> Norm:
        momentum = self.momentum
        if self.training:
            tracked = cast(Tensor, self.num_batches_tracked)
            tracked.add_(1)
            if momentum is None:  # cumulative average
                momentum = 1.0 / float(tracked)
        return Norm(
            self.weight,
            bias,
            cast(Tensor, self.running_mean),
            cast(Tensor, self.running_var),
            momentum or 0.0,
            self.eps,
            self.training,
        )


class FakeQuantBatchNorm1d(_FakeQuantBatchNorm, nn.BatchNorm1d):
    """`nn.BatchNorm1d`, activation, quantizer."""


class FakeQuantBatchNorm2d(_FakeQuantBatchNorm, nn.BatchNorm2d):
    """`nn.BatchNorm2d`, activation, quantizer."""


class FakeQuantBatchNorm3d(_FakeQuantBatchNorm, nn.BatchNorm3d):
    """`nn.BatchNorm3d`, activation, quantizer."""
