"""Values that no input has a part in: parameters, tensors made of literals, and what is computed from these alone."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from qat.placement.prepared import PreparedModel, device_of
from qat.quantizers import FakeQuantize

FACTORIES = (torch.eye, torch.zeros, torch.ones, torch.full, torch.arange, torch.linspace, torch.tensor)
NEW = ("new_zeros", "new_ones", "new_full")


class Constants:
    """Values by node of the prepared graph, computed here and stored where they are read.

    Args:
        prepared: the model that has the parameters and modules.
    """

    def __init__(self, prepared: PreparedModel) -> None:
        self.prepared = prepared
        self.modules = dict(prepared.named_modules())
        self.values: dict[fx.Node, Any] = {}

    def __contains__(self, node: object) -> bool:
        return node in self.values

    def __getitem__(self, node: Any) -> Any:
        return self.values[node]

    def compute(self, node: fx.Node) -> bool:
        """Compute a node if no input has a part in it; in the order of the code, as some write into others.

        What a quantizer returns is no constant but integers, which the caller stores.
        """
        if node.op == "get_attr":
            self.values[node] = attrgetter(str(node.target))(self.prepared)
            return True
        if node.op in ("placeholder", "output"):
            return False
        if _made_of_literals(node):
            self.values[node] = _made(node).to(device_of(self.prepared), node.meta["val"].dtype)
            return True
        module = self.modules.get(str(node.target)) if node.op == "call_module" else None
        inputs = node.all_input_nodes
        if not inputs or any(n not in self.values for n in inputs) or isinstance(module, FakeQuantize):
            return False
        arguments: Any = fx.node.map_arg((node.args, node.kwargs), lambda n: self.values[n])
        args, kwargs = arguments
        if node.op == "call_method":
            self.values[node] = getattr(args[0], str(node.target))(*args[1:], **kwargs)
        else:
            called = cast(Callable[..., Any], module if node.op == "call_module" else node.target)
            self.values[node] = called(*args, **kwargs)
        return True


def _made_of_literals(node: fx.Node) -> bool:
    """A tensor made in the forward, the same for every input: `torch.eye(8, device=x.device)`, `x.new_zeros(4, 4)`."""
    if "val" not in node.meta:
        return False
    settings = {node.kwargs.get("device"), node.kwargs.get("dtype")}
    if node.op == "call_method" and node.target in NEW:
        sizes = pytree.tree_leaves(node.args[1:])
        return not any(isinstance(size, fx.Node) for size in sizes) and set(node.all_input_nodes) <= settings | {
            node.args[0]
        }
    return node.target in FACTORIES and set(node.all_input_nodes) <= settings


def _made(node: fx.Node) -> Tensor:
    settings = {k: v for k, v in node.kwargs.items() if not isinstance(v, fx.Node)}  # not `device=x.device`
    if node.op == "call_method":
        settings.pop("device", None)
        made: Tensor = getattr(torch.empty(0, dtype=node.meta["val"].dtype), str(node.target))(
            *node.args[1:], **settings
        )
        return made
    return cast(Callable[..., Tensor], node.target)(*node.args, **settings)
