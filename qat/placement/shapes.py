"""Shapes of every value in a graph: fake tensors through the whole model, real ones where a leaf module needs them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils import _pytree as pytree

from qat.errors import CaptureError
from qat.placement.patterns import function_name, weight_of

EXAMPLES = 2  # length of the batch that shapes are propagated with


class _Propagate(fx.Interpreter):
    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        n.meta["val"] = pytree.tree_map_only(Tensor, lambda x: x.to("meta"), value)
        return value


def propagate_shapes(root: nn.Module, graph: fx.Graph, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Write each node's value, as a tensor without data, into `node.meta["val"]`.

    Raises:
        CaptureError: when the model rejects the example inputs, a wrong size say.
    """
    given = inspect.signature(root.forward).bind(*args, **kwargs).arguments
    inputs = [given[str(n.target)] for n in graph.nodes if n.op == "placeholder" and str(n.target) in given]
    buffers = [(buffer, buffer.clone()) for buffer in root.buffers()]  # BatchNorm counts its batches for real
    try:
        _run(fx.GraphModule(root, graph), inputs)
    except Exception as error:
        shapes = [tuple(x.shape) if isinstance(x, Tensor) else x for x in inputs]
        reason = str(error).split("\n\n")[0].strip()
        raise CaptureError(
            f"{type(root).__name__} rejects example inputs of shape {', '.join(map(str, shapes))}: {reason}. "
            "Pass example_inputs of a size that the model takes"
        ) from error
    finally:
        for buffer, before in buffers:
            buffer.copy_(before)


@torch.no_grad()
def _run(module: fx.GraphModule, inputs: list[Any]) -> None:
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            _Propagate(module).run(*(mode.from_tensor(x) if isinstance(x, Tensor) else x for x in inputs))
    except (DataDependentOutputException, DynamicOutputShapeException):  # a leaf module looks at values
        with torch.random.fork_rng():
            _Propagate(module).run(*inputs)


def two_examples(inputs: tuple[Any, ...], device: Any) -> tuple[Any, ...]:
    """The inputs on a device, with the batch cut to 2, or repeated when it is 1.

    BatchNorm in training and an exported batch dimension need two examples; more would only take time.
    """
    batch = next((x.shape[0] for x in inputs if isinstance(x, Tensor) and x.ndim), None)

    def two(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        x = x.detach().to(device)
        if not x.ndim or x.shape[0] != batch:
            return x  # no batch dimension
        return torch.cat([x, x]) if batch == 1 else x[:2]

    return tuple(two(x) for x in inputs)


def macs_per_example(node: fx.Node, module: nn.Module | None) -> int:
    """Multiply-accumulates of a convolution, linear layer or matrix product for one example; 0 for anything else."""
    value = node.meta["val"]
    if not isinstance(value, Tensor):
        return 0
    batch = EXAMPLES if value.ndim > 1 else 1
    if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
        taps = math.prod(module.weight.shape[1:])  # [C_out, C_in / groups, k...] or [C_out, C_in]
    elif module is None and function_name(node) in ("matmul", "bmm"):
        taps = node.all_input_nodes[0].meta["val"].shape[-1]
    elif module is None and function_name(node) in ("linear", "conv1d", "conv2d", "conv3d"):
        weight = weight_of(node)
        taps = math.prod(weight.meta["val"].shape[1:]) if weight is not None else 0
    elif node.target is torch.einsum:
        letters = str(node.args[0]).replace(" ", "").partition("->")[0].replace(",", "")
        lengths = [n for operand in node.all_input_nodes for n in operand.meta["val"].shape]
        return math.prod(dict(zip(letters, lengths, strict=False)).values()) // batch
    else:
        return 0
    return math.prod(value.shape) // batch * taps
