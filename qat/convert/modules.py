"""A model that was prepared by modules, as its own class again: integer layers in it, and no graph."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qat.convert.folding import folded
from qat.convert.origin import origin
from qat.convert.values import Grid
from qat.convert.weighted import CONVOLUTIONS
from qat.functional.folding import fit_bias
from qat.layers import FakeQuantWeight, pruned
from qat.layers.integer import IntegerLayer
from qat.placement.modules import PreparedModules
from qat.placement.prepare import require_finite
from qat.quantizers import FakeQuantize


@torch.no_grad()
def integer_modules(prepared: PreparedModules) -> Any:
    """The integer model, as a copy.

    Raises:
        CalibrationError: a quantizer whose range was never observed.
        NumericsError: NaN or Inf in a weight or range.
    """
    require_finite(prepared)
    for name, module in prepared.named_modules():
        if isinstance(module, FakeQuantize):
            module.require_calibrated(name)
    root = cast(PreparedModules, pruned.copied(prepared, masks=False))._root[0]
    for name, layer in list(root.named_modules()):
        if isinstance(layer, FakeQuantWeight):
            root.set_submodule(name, _integer_layer(layer))
    integer = root.eval().requires_grad_(False)
    integer.__dict__["meta"] = origin(prepared, sites=())  # where a GraphModule has it
    return integer


def _integer_layer(layer: FakeQuantWeight) -> IntegerLayer:
    grid, spec = Grid.of(cast(FakeQuantize, layer.input_quantizer)), layer.weight_quantizer.spec
    q, scale, bias = folded(layer, None)
    steps = None
    if bias is not None:
        q, scale, steps = fit_bias(q, scale, bias, grid.scale)
    return IntegerLayer(_functional_form(layer), (q, scale, spec.qmin, spec.qmax), steps, grid.operands)


def _functional_form(layer: nn.Module) -> Callable[..., Any]:
    """A convolution or linear layer as a function of input, weight and bias."""
    if isinstance(layer, nn.Linear):
        return F.linear
    conv = cast(nn.modules.conv._ConvNd, layer)
    settings: dict[str, Any] = {"stride": conv.stride, "dilation": conv.dilation, "groups": conv.groups}
    convolve = functools.partial(CONVOLUTIONS[type(conv)], **settings)
    if conv.padding_mode == "zeros":
        return functools.partial(convolve, padding=conv.padding)
    return functools.partial(_padded, convolve, tuple(conv._reversed_padding_repeated_twice), conv.padding_mode)


def _padded(convolve: Callable[..., Any], widths: tuple[int, ...], mode: str, x: Tensor, *parameters: Any) -> Any:
    return convolve(F.pad(x, widths, mode=mode), *parameters)
