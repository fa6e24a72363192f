"""Copies of an integer model that a writer rewrites: a graph and modules of their own, the tensors of the original.

Rewriting adds buffers and drops them, and writes into none, so a model of many gigabytes is in memory once.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.passes.shape_prop import ShapeProp

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
