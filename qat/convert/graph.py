"""The integer model while it is built: a graph of operators and a root with the buffers that it reads."""

from __future__ import annotations

import operator
from collections.abc import Collection
from typing import Any, cast

import torch
import torch.ao.quantization.fx._decomposed
from torch import Tensor, fx, nn

from qat.convert.values import Grid, OnGrid

OPS = torch.ops.quantized_decomposed
EMPTY = fx.GraphModule(nn.Module(), fx.Graph())
IN_PLACE = (operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ior, operator.iand)


class IntegerGraph:
    """Nodes are appended in the order of the calls.

    Args:
        taken: names at the root of the fake-quant model.

    Attributes:
        root: holds buffers and modules under the names that they have in the fake-quant model.
        graph: the nodes.
        sites: by the node that quantizes it, the name of a value in the prepared graph.
    """

    def __init__(self, taken: Collection[str] = ()) -> None:
        self.root = nn.Module()
        self._taken = taken
        self.graph = fx.Graph()
        self.sites: dict[fx.Node, str] = {}
        self._calls: dict[str, int] = {}  # how often a module was called so far

    def call(self, function: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """A node that calls a function."""
        return self.graph.call_function(function, args, kwargs)

    def quantize(self, value: fx.Node, site: fx.Node, grid: Grid) -> OnGrid:
        """Quantize a value; `site` is the node of the prepared graph whose integers these are."""
        quantized = self.call(OPS.quantize_per_tensor.default, value, *grid.operands)
        self.sites[quantized] = site.name
        return OnGrid(quantized, grid)

    def dequantize(self, value: OnGrid) -> fx.Node:
        """The value in float, for one reader alone."""
        return self.call(OPS.dequantize_per_tensor.default, value.node, *value.grid.operands)

    def stored(self, name: str, q: Tensor, scale: Tensor, qmin: int, qmax: int) -> fx.Node:
        """A buffer of integers and the node that dequantizes it; `scale` is a scalar or has one element a row."""
        node = self.buffer(name, q)
        if scale.ndim == 0:
            return self.call(OPS.dequantize_per_tensor.default, node, float(scale), 0, qmin, qmax, q.dtype)
        scales = self.buffer(f"{name}_scale", scale)
        # onnxruntime runs a linear layer on integers only if its weight has zero points; elsewhere they are just bytes
        zeros = self.buffer(f"{name}_zero_point", torch.zeros_like(q[:, 0])) if q.ndim == 2 else None
        return self.call(OPS.dequantize_per_channel.default, node, scales, zeros, 0, qmin, qmax, q.dtype)

    def buffer(self, path: str, tensor: Tensor) -> fx.Node:
        """A node that reads a buffer; made of `tensor` where the root has none of that name."""
        path = self._free(path)
        parent, _, leaf = path.rpartition(".")
        host = self._container(parent)
        if leaf not in host._buffers:
            host.register_buffer(leaf, tensor.detach().clone())
        return self.graph.create_node("get_attr", path)

    def attach(self, path: str, module: nn.Module) -> str:
        """Give the root a module, where it has none of that name; its path there is returned."""
        path = self._free(path)
        parent, _, leaf = path.rpartition(".")
        host = self._container(parent)
        if leaf not in host._modules:
            host.add_module(leaf, module)
        return path

    def name_of_call(self, module: str) -> str:
        """A name per call of a module: its input's scale, and so its bias, may differ."""
        self._calls[module] = count = self._calls.get(module, 0) + 1
        return module if count == 1 else f"{module}_call{count}"

    def finished(self) -> tuple[fx.GraphModule, tuple[str, ...]]:
        """The integer model, without what nobody reads, as exporters write it; and its quantized values by name."""
        for node in reversed(list(self.graph.nodes)):
            if not node.users and not _writes(node):  # pieces of a split value, tokens beside the last class token
                self.graph.erase_node(node)
        model = fx.GraphModule(self.root, self.graph, class_name="IntegerModel").eval().requires_grad_(False)
        return model, tuple(self.sites[node] for node in self.graph.nodes if node in self.sites)

    def own(self, name: str) -> str:
        """A path for a constant that the fake-quant model has no name for."""
        container = "constants"
        while container in self._taken:
            container += "_"
        return f"{container}.{name}"

    def _free(self, path: str) -> str:
        """A path whose first part no attribute of a GraphModule bears, as `meta` and `graph` do."""
        first, dot, rest = path.partition(".")
        if hasattr(EMPTY, first):
            first += "_"
            while first in self._taken:
                first += "_"
        return f"{first}{dot}{rest}"

    def _container(self, path: str) -> nn.Module:
        at = self.root
        for part in path.split(".") if path else []:
            if part not in at._modules:
                at.add_module(part, nn.Module())
            at = cast(nn.Module, at._modules[part])
        return at


def _writes(node: fx.Node) -> bool:
    """Whether a node may do more than return a value: inputs and outputs, modules, operators in place."""
    if node.op not in ("call_function", "call_method") or node.is_impure() or node.kwargs.get("inplace"):
        return True
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
    return name.endswith("_") or name == "setitem" or (node.target in IN_PLACE)
