"""DoReFa: weights normalised through a tanh before they are rounded (Zhou et al. 2016, arXiv:1606.06160).

    q = round(qmax * tanh(w) / max |tanh(w)|)      y = q * s
    dy/dw = s * qmax * (1 - tanh(w)^2) / max |tanh(w)|

What is stored are these q, so `integers` applies the tanh as well. The paper's weights lie in [-1, 1], s = 1 / qmax; a
trained float model keeps the size of its weights: s comes from calibration, s * qmax = max |w|, and stays there.
For activations the paper clips to [0, 1]; a calibrated range (`ObservedFakeQuantize`) is the same without the new size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from qat.errors import ConfigError
from qat.functional.affine import broadcast
from qat.functional.dorefa import tanh_steps
from qat.functional.ste import fake_quantize_channels
from qat.observers import Observer
from qat.quantizers.trained import TrainedFakeQuantize
from qat.spec import IntSpec, Scheme


class DoReFa(TrainedFakeQuantize):
    """Weights through a tanh, on a fixed grid.

    Args:
        spec: a mirrored grid: symmetric, signed, narrow.
        observer: builds the range estimator whose range is the size of the weights.
        channels: length of the scale when the grid is per channel.

    Raises:
        ConfigError: for another grid.
    """

    def __init__(self, spec: IntSpec, observer: Callable[..., Observer], *, channels: int | None = None) -> None:
        super().__init__(spec, observer, channels=channels)
        if spec.scheme is not Scheme.SYMMETRIC or not spec.narrow:
            raise ConfigError(
                f"DoReFa puts weights on a mirrored grid, got {spec}; use scheme: symmetric and narrow: true, "
                "and another quantizer for activations"
            )
        self.register_buffer("scale", torch.ones(self.shape))
        self.register_buffer("zero_point", torch.zeros(self.shape, dtype=torch.int32))

    @torch.no_grad()
    def start(self, scale: Tensor, zero_point: Tensor) -> None:
        """Set the size of the weights."""
        self.scale.copy_(scale)

    def quantized(self, x: Tensor) -> Tensor:
        """`x` through the tanh, on the grid."""
        return self._steps(x) * broadcast(self.scale, x, self.spec.axis)

    @torch.no_grad()
    def integers(self, x: Tensor) -> Tensor:
        """The integers that a runtime stores for the weight `x`: int8, shape of `x`."""
        return self._steps(x.float()).to(torch.int8)

    def _steps(self, x: Tensor) -> Tensor:
        """Whole numbers, as floats; rounding passes the gradient straight through."""
        qmax, one = self.spec.qmax, torch.ones((), device=x.device)
        return fake_quantize_channels(tanh_steps(x, qmax, self.axis), one, None, self.spec.qmin, qmax)
