"""Copies of an integer model that a writer rewrites: a graph and modules of their own, the tensors of the original.

Rewriting adds buffers and drops them, and writes into none, so a model of many gigabytes is in memory once.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.passes.shape_prop import ShapeProp
from torch.utils._pytree import tree_map_only

M = TypeVar("M", bound=nn.Module)


def with_same_tensors(model: M) -> M:
    """A copy whose parameters and buffers are those of `model`."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]})


def with_shapes(model: fx.GraphModule, inputs: Sequence[Any]) -> fx.GraphModule:
    """Such a copy whose nodes know their shapes, `node.meta["tensor_meta"]`; nothing is computed.

    Args:
        model: an integer model.
        inputs: example inputs, `[N, ...]`.
    """
    copied = with_same_tensors(model)
    with torch.no_grad():
        ShapeProp(copied, FakeTensorMode()).propagate(*inputs)
    return copied


def with_batch_axes(model: fx.GraphModule, inputs: Sequence[Any]) -> fx.GraphModule:
    """Such a copy whose nodes also know which axes grow with the batch, `node.meta["batch_axes"]`.

    Sizes are compared with those of one more example: one size that happens to be the batch's says nothing. Without
    the entry where a model has a batch size of its own, which the export of this very graph explains.
    """
    copied = with_shapes(model, inputs)
    one_more = tree_map_only(Tensor, lambda x: torch.cat([x, x[:1]]) if x.dim() else x, tuple(inputs))
    try:
        larger = with_shapes(model, one_more)
    except Exception:
        return copied
    for node, other in zip(copied.graph.nodes, larger.graph.nodes, strict=True):
        sizes = zip(shape_of(node), shape_of(other), strict=False)
        node.meta["batch_axes"] = tuple(axis for axis, (few, more) in enumerate(sizes) if few != more)
    return copied


def shape_of(node: Any) -> tuple[int, ...]:
    """The example's shape of a node that knows it; `()` for what is no tensor."""
    return tuple(getattr(node.meta.get("tensor_meta"), "shape", ()))


def batch_first(*nodes: Any) -> bool:
    """Whether the first axis of each value, and no other, grows with the batch."""
    return all(isinstance(node, fx.Node) and node.meta.get("batch_axes") == (0,) for node in nodes)
