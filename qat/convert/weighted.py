"""Layers with weights in the integer graph: stored integers, dequantized, and the product with the layer's input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from qat.convert.folding import Norm, folded, folded_ones
from qat.convert.graph import IntegerGraph
from qat.convert.values import OnGrid
from qat.functional.folding import fit_bias
from qat.layers import FakeQuantConv1d, FakeQuantConv2d, FakeQuantConv3d, FakeQuantFunction, FakeQuantWeight
from qat.spec import IntSpec

BY_DIMENSIONS = (F.conv1d, F.conv2d, F.conv3d)
CONVOLUTIONS: dict[type, Callable[..., Any]] = dict(
    zip((FakeQuantConv1d, FakeQuantConv2d, FakeQuantConv3d), BY_DIMENSIONS, strict=True)
)


def layer(graph: IntegerGraph, name: str, module: FakeQuantWeight, norm: Norm | None, source: OnGrid) -> fx.Node:
    """A convolution or linear layer, with the BatchNorm behind it."""
    quantizer = module.weight_quantizer
    ends = quantizer.spec.ends if norm is None or not quantizer.shape else quantizer.spec.with_mirror_image
    weight, bias = _parameters(graph, name, source, *folded(module, norm), ends)
    x = graph.dequantize(source)
    if isinstance(module, nn.Linear):
        return graph.call(F.linear, x, weight, bias)
    conv = cast(nn.modules.conv._ConvNd, module)
    padding: Any = conv.padding
    if conv.padding_mode != "zeros":
        x = graph.call(F.pad, x, tuple(conv._reversed_padding_repeated_twice), mode=conv.padding_mode)
        padding = (0,) * len(conv.kernel_size)
    function = CONVOLUTIONS[type(conv)]
    return graph.call(function, x, weight, bias, conv.stride, padding, conv.dilation, conv.groups)


def batchnorm(graph: IntegerGraph, name: str, norm: Norm, spec: IntSpec, spatial: int, source: OnGrid) -> fx.Node:
    """A BatchNorm alone: a depthwise convolution with one tap, over `spatial` dimensions; `spec` is its weight's."""
    weight, bias = _parameters(graph, name, source, *folded_ones(norm, spec, spatial), spec.ends)
    function = BY_DIMENSIONS[spatial - 1]
    return graph.call(function, graph.dequantize(source), weight, bias, 1, 0, 1, norm.num_features)


def function(
    graph: IntegerGraph, name: str, module: FakeQuantFunction, arguments: tuple[Any, ...], source: OnGrid
) -> fx.Node:
    """A functional layer; `arguments` are those behind its input: weight and bias, constants here, and settings."""
    weight, bias, *settings = arguments
    quantizer = module.weight_quantizer
    q, scale = quantizer.integers(weight), quantizer.scale.clone()
    stored = _parameters(graph, name, source, q, scale, bias, quantizer.spec.ends)
    return graph.call(getattr(F, module.name), graph.dequantize(source), *stored, *settings)


def _parameters(
    graph: IntegerGraph, name: str, source: OnGrid, q: Tensor, scale: Tensor, bias: Tensor | None, ends: tuple[int, int]
) -> tuple[fx.Node, fx.Node | None]:
    """Weight and bias of a layer as stored integers, dequantized; those of the weight are between `ends`."""
    steps = None
    if bias is not None:
        q, scale, steps = fit_bias(q, scale, bias, source.grid.scale)
    name = graph.name_of_call(name)
    weight = graph.stored(f"{name}.weight", q, scale, *ends)
    if steps is None:
        return weight, None
    limits = torch.iinfo(torch.int32)
    return weight, graph.stored(f"{name}.bias", steps, scale * source.grid.scale, limits.min + 1, limits.max)
