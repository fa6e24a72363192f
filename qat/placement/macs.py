"""Multiply-accumulates for one example: of layers that are traced, inside those that stay whole, of a running model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from qat.layers.attention import OpenAttention

EXAMPLES = 2  # length of the batch that shapes are propagated with
NO_PRODUCTS = (
    nn.Embedding,
    nn.EmbeddingBag,
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.PReLU,
)


def layer_macs(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> int:
    """Products with the layer's own weights in one call, without those of the layers inside it.

    A weight of an unknown class is taken for a matrix over its first or last dimension, whichever the output has.

    Args:
        layer: any module.
        inputs: of its forward, tensors `[N, ...]`, N = 2.
        output: what it returned.
    """
    if isinstance(layer, NO_PRODUCTS):
        return 0
    if isinstance(layer, nn.MultiheadAttention):
        return _attention(layer, inputs)
    weights = [p for p in layer._parameters.values() if p is not None and p.ndim > 1 and len(p) > 1]
    if isinstance(layer, nn.RNNBase):
        first = next((x for x in inputs if isinstance(x, Tensor)), None)
        return 0 if first is None else _count(first) // first.shape[-1] * sum(w.numel() for w in weights)
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        return _count(inputs[0]) * layer.weight[0].numel() if inputs else 0
    values = output[0] if isinstance(output, tuple | list) and output else output
    if not isinstance(values, Tensor):
        return 0
    if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd):  # also of one output
        return _count(values) * layer.weight[0].numel()
    wide = {w: next((n for n in (len(w), w.shape[-1]) if n in values.shape), None) for w in weights}
    return sum(w.numel() * (_count(values) // n if n else 1) for w, n in wide.items())


@contextmanager
def macs_inside(module: nn.Module) -> Iterator[list[int]]:
    """Counts the layers inside a module that is called meanwhile, one number a call."""
    counts: list[int] = []

    def record(layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        counts.append(layer_macs(layer, (*inputs, *named.values()), output))

    handles = [m.register_forward_hook(record, with_kwargs=True) for m in module.modules() if m is not module]
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def macs_of_calls(root: nn.Module) -> Iterator[dict[str, int]]:
    """Counts the modules that are called meanwhile, by path: their weights' products, or what they multiply if more.

    What a forward multiplies by itself, two activations say, is seen where torch computes it; layers that torch
    computes in one piece of its own, recurrent ones say, are known by their weights.
    """
    seen: dict[str, int] = {}
    outside: list[int] = []  # of each module that runs: operations before it, and of modules in it that have ended
    counter = FlopCounterMode(display=False)

    def start(module: nn.Module, inputs: Any) -> None:
        outside.append(counter.get_total_flops())

    def end(name: str, module: nn.Module, inputs: Any, named: Any, output: Any) -> None:
        flops = counter.get_total_flops() - outside.pop()
        outside[:] = [before + flops for before in outside]
        own = flops // (2 * EXAMPLES)  # a product and a sum
        seen[name] = seen.get(name, 0) + max(own, layer_macs(module, (*inputs, *named.values()), output))

    handles = []
    for name, module in root.named_modules():
        handles += [module.register_forward_pre_hook(start)]
        handles += [module.register_forward_hook(partial(end, name), with_kwargs=True)]
    try:
        with counter:
            yield seen
    finally:
        for handle in handles:
            handle.remove()


def _count(x: Tensor) -> int:
    """Values for one example."""
    return math.prod(x.shape) // (EXAMPLES if x.ndim > 1 else 1)


def _attention(layer: nn.MultiheadAttention, inputs: tuple[Any, ...]) -> int:
    """Three projections, two products and, where it is not called as a layer, the projection of the result."""
    if len(inputs) < 3:
        return 0
    query, key, value = inputs[:3]  # [N, L, E], [N, S, E_k], [N, S, E_v], or N second
    tokens, width = _count(query) // query.shape[-1], layer.embed_dim
    keys = _count(key) // key.shape[-1]
    projections = tokens * width * width + width * (_count(key) + _count(value))
    products = 2 * tokens * keys * width
    return projections + products + (0 if isinstance(layer, OpenAttention) else tokens * width * width)
