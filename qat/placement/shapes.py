"""Shapes of every value in a graph, without computing any: fake tensors through the whole model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from qat.errors import CaptureError


class _Propagate(fx.Interpreter):
    def run_node(self, n: fx.Node) -> Any:
        n.meta["val"] = value = super().run_node(n)
        return value


def propagate_shapes(root: nn.Module, graph: fx.Graph, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Write each node's value, as a fake tensor, into `node.meta["val"]`.

    Raises:
        CaptureError: when the model rejects the example inputs, a wrong size say.
    """
    inputs = [*args, *(kwargs[n.target] for n in graph.nodes if n.op == "placeholder" and n.target in kwargs)]
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = [mode.from_tensor(x) if isinstance(x, Tensor) else x for x in inputs]
        try:
            _Propagate(fx.GraphModule(root, graph)).run(*fake)
        except Exception as error:
            shapes = [tuple(x.shape) if isinstance(x, Tensor) else x for x in inputs]
            reason = str(error).split("\n\n")[0].strip()
            raise CaptureError(
                f"{type(root).__name__} rejects example inputs of shape {', '.join(map(str, shapes))}: {reason}. "
                "Pass example_inputs of a size that the model takes"
            ) from error


def at_least_two(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """The inputs with their batch repeated when it is 1: BatchNorm in training and export need two examples."""
    return tuple(torch.cat([x, x]) if isinstance(x, Tensor) and x.ndim and x.shape[0] == 1 else x for x in inputs)


def macs_per_example(node: fx.Node, module: nn.Module) -> int:
    """Multiply-accumulates of a convolution or linear layer for one example."""
    value = node.meta["val"]
    weight = module.weight
    assert isinstance(weight, Tensor)
    batch = value.shape[0] if value.ndim > 1 else 1
    per_output = math.prod(weight.shape[1:])  # [C_out, C_in / groups, k...] or [C_out, C_in]
    return math.prod(value.shape) // batch * per_output
