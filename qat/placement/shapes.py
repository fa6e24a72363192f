"""Shapes of every value in a graph: fake tensors through the whole model, real ones where a leaf module needs them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.utils import _pytree as pytree

from qat.errors import CaptureError
from qat.inputs import map_examples
from qat.layers.attention import OpenAttention
from qat.placement.fake import Shapes, methodcaller
from qat.placement.macs import EXAMPLES, layer_macs, macs_inside
from qat.placement.patterns import function_name, weight_of

# which argument of a product its left factor is
PRODUCTS = {"matmul": 0, "bmm": 0, "mm": 0, "mv": 0, "addmm": 1, "baddbmm": 1, "addmv": 1}


class _Propagate(fx.Interpreter):
    """On real tensors."""

    def __init__(self, root: nn.Module, graph: fx.Graph, given: Mapping[str, Any]) -> None:
        super().__init__(root, graph=graph)
        self.given = given

    def placeholder(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.given[target.lstrip("*")]

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        n.meta["val"] = self.kept(value)
        if n.op == "call_module":
            n.meta["macs"] = self.macs
        return value

    def kept(self, value: Any) -> Any:
        return pytree.tree_map_only(Tensor, _shape_alone, value)

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module = self.fetch_attr(target)
        with macs_inside(module) as inside:
            result = self.compute(module, args, kwargs)
        self.macs = layer_macs(module, (*args, *kwargs.values()), result) + sum(inside)
        return result

    def compute(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return module(*args, **kwargs)


class _PropagateShapes(_Propagate):
    """On tensors without data, which are kept as they are until their mode has ended."""

    def __init__(self, root: nn.Module, graph: fx.Graph, given: Mapping[str, Any], shapes: Shapes) -> None:
        super().__init__(root, graph, given)
        self.shapes = shapes

    def kept(self, value: Any) -> Any:
        return value

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.shapes.run(target, args, kwargs, target)

    def call_method(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.shapes.run(target, args, kwargs, methodcaller(target))

    def compute(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.shapes.run(module, args, kwargs, module)


def propagate_shapes(
    root: nn.Module,
    graph: fx.Graph,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    shapes: Shapes | None = None,
) -> None:
    """Write each node's value, as a tensor without data, into `node.meta["val"]`.

    Args:
        root: the model.
        graph: of its forward.
        args: positional inputs of forward.
        kwargs: keyword inputs.
        shapes: what is known from another graph of the model.

    Raises:
        CaptureError: when the model rejects the example inputs, a wrong size say.
    """
    given = inspect.signature(root.forward).bind(*args, **kwargs).arguments
    buffers = [(buffer, buffer.clone()) for buffer in root.buffers()]  # BatchNorm counts its batches for real
    try:
        _run(root, graph, given, shapes or Shapes())
        if _unbatched(graph):
            raise ValueError  # named below
    except Exception as error:
        sizes = pytree.tree_map_only(Tensor, lambda x: tuple(x.shape), list(given.values()))
        reason = "attention needs a batch, [N, L, E]" if _unbatched(graph) else str(error).split("\n\n")[0].strip()
        raise CaptureError(
            f"{type(root).__name__} rejects example inputs of shape {', '.join(map(str, sizes))}: {reason}. "
            "Pass example_inputs of a size that the model takes"
        ) from error
    finally:
        for buffer, before in buffers:
            buffer.copy_(before)


def _unbatched(graph: fx.Graph) -> bool:
    """Whether attention was given `[L, E]`, which torch's own takes: heads are split with no batch before them."""
    split = [n for n in graph.nodes if n.target == "unflatten" and _is_of_attention(n)]
    values = [n.meta.get("val") for n in split]
    return any(isinstance(value, Tensor) and value.ndim == 3 for value in values)  # [L, heads, d]


def _is_of_attention(node: fx.Node) -> bool:
    owners = [owner for _, owner in node.meta.get("nn_module_stack", {}).values()]
    return bool(owners) and owners[-1] is OpenAttention


@torch.no_grad()
def _run(root: nn.Module, graph: fx.Graph, given: Mapping[str, Any], shapes: Shapes) -> None:
    try:
        with shapes.mode as mode:
            _PropagateShapes(root, graph, pytree.tree_map_only(Tensor, mode.from_tensor, dict(given)), shapes).run()
    except (DataDependentOutputException, DynamicOutputShapeException):  # a leaf module looks at values
        with torch.random.fork_rng():
            _Propagate(root, graph, given).run()
        return
    for node in graph.nodes:
        node.meta["val"] = pytree.tree_map_only(Tensor, _shape_alone, node.meta["val"])


def _shape_alone(value: Tensor) -> Tensor:
    return torch.empty(value.shape, dtype=value.dtype, device="meta")


def two_examples(inputs: tuple[Any, ...], device: Any) -> tuple[Any, ...]:
    """The inputs on a device, with the batch cut to 2, or repeated when it is 1.

    BatchNorm in training and an exported batch dimension need two examples; more would only take time.
    """

    def two(x: Tensor) -> Tensor:
        x = x.detach().to(device)
        return torch.cat([x, x]) if len(x) == 1 else x[:2]

    return map_examples(two, inputs, other=lambda x: x.detach().to(device))


def macs_per_example(node: fx.Node, module: nn.Module | None) -> int:
    """Multiply-accumulates for one example: of a module with those inside it, or of a matrix product."""
    if module is not None:
        return int(node.meta.get("macs", 0))
    value = node.meta["val"]
    if not isinstance(value, Tensor):
        return 0
    batch = EXAMPLES if value.ndim > 1 else 1
    if function_name(node) in PRODUCTS:
        left = [*node.args, *node.kwargs.values()][PRODUCTS[function_name(node)]]
        taps = left.meta["val"].shape[-1] if isinstance(left, fx.Node) else 0
    elif function_name(node) in ("linear", "conv1d", "conv2d", "conv3d"):
        weight = weight_of(node)
        taps = math.prod(weight.meta["val"].shape[1:]) if weight is not None else 0
    elif node.target is torch.einsum:
        letters = str(node.args[0]).replace(" ", "").partition("->")[0].replace(",", "")
        lengths = [n for operand in node.all_input_nodes for n in operand.meta["val"].shape]
        return math.prod(dict(zip(letters, lengths, strict=False)).values()) // batch
    else:
        return 0
    return math.prod(value.shape) // batch * taps
