"""What an operator means for quantization: a table from graph nodes to roles.

A role says what a node does to integer grids, nothing about a model or a target. Modules, functions and methods that
compute the same have the same role.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from qat.functional.ste import RELU, RELU6, Clamp


class Role(StrEnum):
    """What a node does to grids."""

    WEIGHTED = "weighted"  # reads a grid, has a weight of its own: convolution, linear
    NORM = "norm"  # BatchNorm: folds into the weighted node before it
    CLAMP = "clamp"  # an activation that a quantizer can absorb: ReLU, ReLU6
    ARITHMETIC = "arithmetic"  # reads grids, makes a new one: add, concatenation, average pooling
    MOVE = "move"  # selects or moves values: the output stays on the input's grid
    IDENTITY = "identity"  # nothing in evaluation: dropout
    FLOAT = "float"  # computed in float


WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

MODULES: dict[type[nn.Module], Role] = {
    **dict.fromkeys(WEIGHTED, Role.WEIGHTED),
    **dict.fromkeys(NORMS, Role.NORM),
    **dict.fromkeys((nn.ReLU, nn.ReLU6, nn.Hardtanh), Role.CLAMP),
    **dict.fromkeys((nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d), Role.ARITHMETIC),
    **dict.fromkeys((nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d), Role.ARITHMETIC),
    **dict.fromkeys((nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d), Role.MOVE),
    **dict.fromkeys((nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d), Role.MOVE),
    **dict.fromkeys((nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle), Role.MOVE),
    **dict.fromkeys((nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d), Role.MOVE),
    **dict.fromkeys((nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d), Role.IDENTITY),
}

FUNCTIONS: dict[Any, Role] = {
    **dict.fromkeys((F.relu, F.relu_, F.relu6, F.hardtanh, F.hardtanh_, torch.relu, torch.relu_), Role.CLAMP),
    **dict.fromkeys((operator.add, operator.iadd, torch.add), Role.ARITHMETIC),
    **dict.fromkeys((torch.cat, torch.concat, torch.concatenate), Role.ARITHMETIC),
    **dict.fromkeys((F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, torch.mean), Role.ARITHMETIC),
    **dict.fromkeys((F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d), Role.ARITHMETIC),
    **dict.fromkeys((F.max_pool1d, F.max_pool2d, F.max_pool3d), Role.MOVE),
    **dict.fromkeys((torch.flatten, torch.reshape, torch.permute, torch.transpose, torch.squeeze), Role.MOVE),
    **dict.fromkeys((torch.unsqueeze, torch.chunk, torch.split, F.pixel_shuffle, operator.getitem, F.pad), Role.MOVE),
    **dict.fromkeys((F.dropout, F.dropout2d, F.dropout1d, F.dropout3d), Role.IDENTITY),
}

METHODS: dict[str, Role] = {
    **dict.fromkeys(("relu", "relu_"), Role.CLAMP),
    **dict.fromkeys(("add", "add_", "mean"), Role.ARITHMETIC),
    **dict.fromkeys(("flatten", "reshape", "view", "permute", "transpose", "contiguous", "squeeze"), Role.MOVE),
    **dict.fromkeys(("unsqueeze", "chunk", "split", "unflatten", "clone", "expand", "repeat"), Role.MOVE),
}


def module_of(node: fx.Node, modules: Mapping[str, nn.Module]) -> nn.Module | None:
    """The module that a `call_module` node calls."""
    return modules.get(str(node.target)) if node.op == "call_module" else None


def is_tensor(node: Any) -> bool:
    """Whether a node's value is a float tensor (or several); needs shape propagation (`node.meta["val"]`)."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    values = value if isinstance(value, list | tuple) and value else [value]
    return all(isinstance(v, torch.Tensor) and v.is_floating_point() for v in values)


def role_of(node: fx.Node, modules: Mapping[str, nn.Module]) -> Role:
    """What `node` does to grids. Subclasses of a layer have the layer's role when they keep its forward."""
    role = Role.FLOAT
    module = module_of(node, modules)
    if module is not None:
        role = next((r for cls, r in MODULES.items() if _computes_like(module, cls)), Role.FLOAT)
    elif node.op == "call_function":
        role = FUNCTIONS.get(node.target, Role.FLOAT)
    elif node.op == "call_method":
        role = METHODS.get(str(node.target), Role.FLOAT)
    if role is Role.NORM and module is not None and module.running_mean is None:
        return Role.FLOAT  # every batch has its own statistics: nothing to fold
    if role is Role.CLAMP and clamp_of(node, modules) is None:
        return Role.FLOAT  # a hardtanh that zero is not an end of
    if role is Role.ARITHMETIC and not _new_grid(node):
        return Role.FLOAT
    if role is Role.MOVE and not _moves(node):
        return Role.FLOAT
    return role


def clamp_of(node: fx.Node, modules: Mapping[str, nn.Module]) -> Clamp | None:
    """The activation of a CLAMP node; None when it is no clamp from zero upwards."""
    module = module_of(node, modules)
    name = type(module).__name__ if module is not None else getattr(node.target, "__name__", str(node.target))
    match name.lower().rstrip("_"):
        case "relu":
            return RELU
        case "relu6":
            return RELU6
        case "hardtanh":
            if isinstance(module, nn.Hardtanh):
                low, high = module.min_val, module.max_val
            else:
                low = _argument(node, 1, "min_val", -1.0)
                high = _argument(node, 2, "max_val", 1.0)
            return Clamp(float(low), float(high)) if low == 0.0 and math.isfinite(high) else None
    return None


def grid_inputs(node: fx.Node) -> list[fx.Node]:
    """The inputs that an integer kernel reads from grids: all float tensors among the arguments."""
    return [n for n in node.all_input_nodes if is_tensor(n)]


def _computes_like(module: nn.Module, cls: type[nn.Module]) -> bool:
    return isinstance(module, cls) and type(module).forward is cls.forward


def _argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _new_grid(node: fx.Node) -> bool:
    """Whether an arithmetic node adds two activations (not an offset), or reduces over space."""
    name = getattr(node.target, "__name__", str(node.target))
    if name in ("add", "iadd", "add_"):
        return len(grid_inputs(node)) >= 1 and all(is_tensor(a) for a in node.args[:2]) and not node.kwargs
    if name == "mean":
        return spatial_mean(node) is not None
    return is_tensor(node)


def spatial_mean(node: fx.Node) -> bool | None:
    """For a mean over height and width of `[N, C, H, W]`: whether it keeps the dimensions; None for another mean."""
    value = node.all_input_nodes[0].meta.get("val") if node.all_input_nodes else None
    dims = _argument(node, 1, "dim", None)
    if not isinstance(value, torch.Tensor) or value.ndim != 4 or not isinstance(dims, list | tuple):
        return None
    if {d % 4 for d in dims} != {2, 3} or "dtype" in node.kwargs:
        return None
    return bool(_argument(node, 2, "keepdim", False))


def _moves(node: fx.Node) -> bool:
    if node.target is F.pad:  # zero is on every grid, another value need not be
        mode, value = _argument(node, 2, "mode", "constant"), _argument(node, 3, "value", None)
        return mode == "constant" and not value
    return True
