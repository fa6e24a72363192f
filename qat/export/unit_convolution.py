"""1 x 1 convolutions with weights of zeros and ones, which select pixels and move channels on integers.

They are exact: the sum is (q - z) * 1, its multiplier s_x * 1 / s_x = 1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from qat.export.bias import OPS, buffer
from qat.export.copies import shape_of


def strided(node: fx.Node) -> tuple[int, int] | None:
    """Steps of `x[:, :, ::a, ::b]` on an image; None for any other index."""
    index: Any = node.args[1]
    if len(shape_of(node.args[0])) != 4 or not isinstance(index, tuple) or len(index) != 4:
        return None
    if not all(isinstance(i, slice) and i.start in (None, 0) and i.stop is None for i in index):
        return None
    steps = [1 if i.step is None else i.step for i in index]
    return (steps[2], steps[3]) if steps[:2] == [1, 1] else None


def channel_padding(node: fx.Node) -> tuple[int, int] | None:
    """Channels of zeros before and behind an image's own; None when anything else is padded."""
    padding: Any = node.args[1]
    width = tuple(padding)
    if len(shape_of(node.all_input_nodes[0])) != 4 or not all(isinstance(size, int) for size in width):
        return None
    if len(width) != 6 or any(width[:4]) or min(width) < 0:
        return None
    return width[4], width[5]


def unit_convolution(
    model: fx.GraphModule, x: fx.Node, weight: Tensor, stride: tuple[int, int], groups: int, name: str
) -> fx.Node:
    """A 1 x 1 convolution with a weight `[C_out, C_in / groups]` of zeros and ones."""
    out = len(weight)
    integers = buffer(model, f"{name}_weight", weight.to(torch.int8)[:, :, None, None])
    scale = buffer(model, f"{name}_scale", torch.ones(out))
    zero = buffer(model, f"{name}_zero_point", torch.zeros(out, dtype=torch.int64))
    bias = buffer(model, f"{name}_bias", torch.zeros(out))
    dequantize = OPS.dequantize_per_channel.default
    value = model.graph.call_function(dequantize, (integers, scale, zero, 0, -127, 127, torch.int8))
    return model.graph.call_function(F.conv2d, (x, value, bias, stride, (0, 0), (1, 1), groups))
