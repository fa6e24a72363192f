"""A fake-quant layer that quantizes its own input: no graph is needed to place it.

y = f(Q_x(x), Q_w(w)) + bias          the output stays in float
"""

from __future__ import annotations

from typing import Any

from torch import nn

from qat.quantizers import FakeQuantize


def stand_alone(layer: nn.Module, input_quantizer: FakeQuantize) -> None:
    """Put a quantizer before a fake-quant convolution or linear layer; it becomes `layer.input_quantizer`."""
    layer.add_module("input_quantizer", input_quantizer)
    layer.register_forward_pre_hook(quantize_input, with_kwargs=True)


def quantize_input(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The hook: input on its grid, and the scale that the bias is rounded with."""
    quantizer = layer.input_quantizer
    assert isinstance(quantizer, FakeQuantize)
    x, *rest = args or (kwargs.pop("input"),)
    return (quantizer(x), *rest), {**kwargs, "input_scale": quantizer.scale}
