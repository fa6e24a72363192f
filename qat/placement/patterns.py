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
from qat.target import CURVES


class Role(StrEnum):
    """What a node does to grids."""

    WEIGHTED = "weighted"  # reads a grid, has a weight of its own: convolution, linear
    NORM = "norm"  # BatchNorm: folds into the weighted node before it
    CLAMP = "clamp"  # an activation that a quantizer can absorb: ReLU, ReLU6
    ARITHMETIC = "arithmetic"  # reads grids, makes a new one: add, product, concatenation, average pooling
    MOVE = "move"  # selects or moves values: the output stays on the input's grid
    SCALE = "scale"  # multiplies by a positive number: the same integers, on a grid of another scale
    IDENTITY = "identity"  # nothing in evaluation: dropout
    FLOAT = "float"  # computed in float


WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

# by name, as packages have their own: branches of a residual network that are dropped in training
DROPS = ("StochasticDepth", "DropPath", "stochastic_depth", "drop_path")
SUMS, PRODUCTS, QUOTIENTS = ("add", "iadd", "add_"), ("mul", "imul", "mul_"), ("truediv", "itruediv", "div", "div_")


ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.Sigmoid: "sigmoid",
    nn.SiLU: "silu",
    nn.GELU: "gelu",
    nn.Hardswish: "hardswish",
    nn.Hardsigmoid: "hardsigmoid",
    nn.Tanh: "tanh",
    nn.ELU: "elu",
    nn.LeakyReLU: "leaky_relu",
}
PURE = (Role.CLAMP, Role.ARITHMETIC, Role.MOVE)


def narrowed(x: torch.Tensor) -> torch.Tensor:
    """The value itself, once more, for a quantizer of its own: narrower than the one that other readers have."""
    return x


def unclamped_hardsigmoid(x: torch.Tensor) -> torch.Tensor:
    """`x / 6 + 1/2`: the clamp to [0, 1] is that of the quantizer behind it."""
    return x / 6 + 0.5


MODULES: dict[type[nn.Module], Role] = {
    **dict.fromkeys(WEIGHTED, Role.WEIGHTED),
    **dict.fromkeys(NORMS, Role.NORM),
    **dict.fromkeys((nn.ReLU, nn.ReLU6, nn.Hardtanh), Role.CLAMP),
    **dict.fromkeys((nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d), Role.ARITHMETIC),
    **dict.fromkeys((nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d), Role.ARITHMETIC),
    nn.Sigmoid: Role.ARITHMETIC,
    **dict.fromkeys((nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d), Role.MOVE),
    **dict.fromkeys((nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d), Role.MOVE),
    **dict.fromkeys((nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle), Role.MOVE),
    **dict.fromkeys((nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d), Role.MOVE),
    **dict.fromkeys((nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d), Role.IDENTITY),
}

FUNCTIONS: dict[Any, Role] = {
    **dict.fromkeys((F.linear, F.conv1d, F.conv2d, F.conv3d), Role.WEIGHTED),
    **dict.fromkeys((F.relu, F.relu_, F.relu6, F.hardtanh, F.hardtanh_, torch.relu, torch.relu_), Role.CLAMP),
    torch.clamp: Role.CLAMP,
    **dict.fromkeys((operator.add, operator.iadd, torch.add), Role.ARITHMETIC),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul), Role.ARITHMETIC),
    **dict.fromkeys((operator.truediv, operator.itruediv, torch.div), Role.SCALE),
    **dict.fromkeys((operator.matmul, torch.matmul, torch.bmm), Role.ARITHMETIC),
    **dict.fromkeys((torch.sigmoid, F.sigmoid, torch.stack, narrowed, unclamped_hardsigmoid), Role.ARITHMETIC),
    **dict.fromkeys((torch.cat, torch.concat, torch.concatenate), Role.ARITHMETIC),
    **dict.fromkeys((F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, torch.mean), Role.ARITHMETIC),
    **dict.fromkeys((F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d), Role.ARITHMETIC),
    **dict.fromkeys((F.max_pool1d, F.max_pool2d, F.max_pool3d), Role.MOVE),
    **dict.fromkeys((torch.flatten, torch.reshape, torch.permute, torch.transpose, torch.squeeze), Role.MOVE),
    **dict.fromkeys((torch.unsqueeze, torch.chunk, torch.split, F.pixel_shuffle, operator.getitem, F.pad), Role.MOVE),
    **dict.fromkeys((torch.roll, torch.unbind, torch.flip, torch.swapaxes, torch.movedim), Role.MOVE),
    **dict.fromkeys((torch.select, torch.narrow, F.pixel_unshuffle, F.channel_shuffle), Role.MOVE),
    **dict.fromkeys((F.dropout, F.dropout2d, F.dropout1d, F.dropout3d), Role.IDENTITY),
}

METHODS: dict[str, Role] = {
    **dict.fromkeys(("relu", "relu_", "clamp", "clamp_"), Role.CLAMP),
    **dict.fromkeys(("add", "add_", "mean", "mul", "mul_", "matmul", "bmm", "sigmoid"), Role.ARITHMETIC),
    **dict.fromkeys(("div", "div_"), Role.SCALE),
    **dict.fromkeys(("flatten", "reshape", "view", "permute", "transpose", "contiguous", "squeeze"), Role.MOVE),
    **dict.fromkeys(("unsqueeze", "chunk", "split", "unflatten", "clone", "expand", "repeat"), Role.MOVE),
    **dict.fromkeys(("roll", "unbind", "flip", "swapaxes", "movedim", "select", "narrow", "t"), Role.MOVE),
    **dict.fromkeys(("expand_as", "view_as", "reshape_as", "tile"), Role.MOVE),
}


def module_of(node: fx.Node, modules: Mapping[str, nn.Module]) -> nn.Module | None:
    """The module that a `call_module` node calls."""
    return modules.get(str(node.target)) if node.op == "call_module" else None


def is_tensor(node: Any) -> bool:
    """Whether a node's value is a float tensor (or several); needs shape propagation (`node.meta["val"]`)."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    values = value if isinstance(value, list | tuple) and value else [value]
    return all(isinstance(v, torch.Tensor) and v.is_floating_point() for v in values)


def is_one(node: fx.Node) -> bool:
    """Whether a node's value is a single one: no tuple of them."""
    return not isinstance(node.meta.get("val"), tuple | list)


def role_of(node: fx.Node, modules: Mapping[str, nn.Module]) -> Role:
    """What `node` does to grids. Subclasses of a layer have the layer's role when they keep its forward."""
    role = _by_table(node, modules)
    match role:
        case Role.NORM if getattr(module_of(node, modules), "running_mean", None) is None:
            return Role.FLOAT  # every batch has its own statistics: nothing to fold
        case Role.CLAMP if clamp_of(node, modules) is None:
            return Role.FLOAT  # a hardtanh that zero is not an end of
        case Role.WEIGHTED if node.op == "call_function" and not _has_own_weight(node):
            return Role.FLOAT  # both factors are activations
        case Role.ARITHMETIC | Role.SCALE if scale_factor(node) is not None:
            return Role.SCALE
        case Role.SCALE:
            return Role.FLOAT
        case Role.ARITHMETIC if not _new_grid(node):
            return Role.FLOAT
        case Role.MOVE if getattr(module_of(node, modules), "return_indices", False):
            return Role.FLOAT  # places are no values
        case Role.MOVE if not _moves(node):
            return Role.FLOAT
    return role


def _by_table(node: fx.Node, modules: Mapping[str, nn.Module]) -> Role:
    module = module_of(node, modules)
    if module is not None:
        if type(module).__name__ in DROPS:
            return Role.IDENTITY
        return next((r for cls, r in MODULES.items() if _computes_like(module, cls)), Role.FLOAT)
    if node.op == "call_function":
        return Role.IDENTITY if function_name(node) in DROPS else FUNCTIONS.get(node.target, Role.FLOAT)
    return METHODS.get(str(node.target), Role.FLOAT) if node.op == "call_method" else Role.FLOAT


def is_pure(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a node has one float input, no parameters and no chance in it: called twice, it is the same twice."""
    if len(node.all_input_nodes) != 1 or node.op not in ("call_function", "call_method", "call_module"):
        return False
    module = module_of(node, modules)
    if module is not None:
        plain = not any(True for _ in module.state_dict()) and not getattr(module, "inplace", False)
        known = _by_table(node, modules) in PURE or isinstance(module, (*ACTIVATIONS, nn.Softmax))
        return plain and known and not (module._forward_hooks or module._forward_pre_hooks)
    name = function_name(node)
    return (
        not name.endswith("_")
        and name != "clone"
        and (name in (*CURVES, "softmax") or _by_table(node, modules) in PURE)
    )


def curve_name(node: fx.Node, modules: Mapping[str, nn.Module]) -> str | None:
    """Which of `CURVES` a node computes of a single tensor: as torch's module, function or method."""
    if len(node.all_input_nodes) != 1 or not is_tensor(node):
        return None
    module = module_of(node, modules)
    if module is not None:
        return next((name for cls, name in ACTIVATIONS.items() if _computes_like(module, cls)), None)
    name = function_name(node)
    own = node.op == "call_method" or any(getattr(m, name, None) is node.target for m in (torch, F))
    return name.rstrip("_") if own and name.rstrip("_") in CURVES else None


def function_name(node: fx.Node) -> str:
    """Name of the function or method that a node calls."""
    return str(getattr(node.target, "__name__", node.target))


def scale_factor(node: fx.Node) -> float | None:
    """The positive number that a product multiplies a tensor by (a quotient: its inverse); else None."""
    name = function_name(node)
    if node.op not in ("call_function", "call_method") or name not in PRODUCTS + QUOTIENTS or len(node.args) != 2:
        return None
    left, right = node.args
    if is_tensor(right) and name in PRODUCTS:
        left, right = right, left
    number = right.meta.get("val") if isinstance(right, fx.Node) else right
    if not is_tensor(left) or isinstance(number, bool) or not isinstance(number, int | float) or node.kwargs:
        return None
    if not math.isfinite(number) or number <= 0 or (isinstance(right, fx.Node) and _of_batch(right)):
        return None
    return float(number) if name in PRODUCTS else 1.0 / number


def _of_batch(number: fx.Node) -> bool:
    """Whether a number may depend on the batch size: all but those made of single sizes of other dimensions."""
    for node in ancestors(number):
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor):
            continue
        reads = [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), torch.Tensor)]
        if function_name(node) == "size" and len(node.args) == 2 and reads:
            if node.args[1] in (0, -reads[0].meta["val"].ndim):
                return True
        elif function_name(node) == "getitem" and isinstance(node.args[1], int):
            sizes = node.all_input_nodes[0].meta.get("val")
            if not isinstance(sizes, tuple | list) or node.args[1] in (0, -len(sizes)):
                return True
        elif reads and not (node.users and all(function_name(user) == "getitem" for user in node.users)):
            return True
    return False


def weight_of(node: fx.Node) -> fx.Node | None:
    """The weight of a functional convolution or linear layer."""
    weight = argument(node, 1, "weight", None)
    return weight if isinstance(weight, fx.Node) else None


def _has_own_weight(node: fx.Node) -> bool:
    """Whether the weight is made of parameters alone."""
    weight = weight_of(node)
    return weight is not None and is_tensor(weight) and "placeholder" not in {n.op for n in ancestors(weight)}


def ancestors(node: fx.Node) -> set[fx.Node]:
    """`node` and everything that it is computed from."""
    found, todo = {node}, [node]
    while todo:
        new = [n for n in todo.pop().all_input_nodes if n not in found]
        found.update(new)
        todo += new
    return found


def learned_or_data(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> set[fx.Node]:
    """Values that are activations or parameters; the range of others, masks say, is arbitrary."""
    found: set[fx.Node] = set()
    root = modules[""]
    for node in graph.nodes:
        name = function_name(node)
        if node.op == "get_attr":
            owner, _, leaf = str(node.target).rpartition(".")
            counts = leaf in root.get_submodule(owner)._parameters
        elif name.startswith("new_") or name.endswith("_like"):
            counts = False
        else:
            has_parameters = node.op == "call_module" and any(True for _ in modules[str(node.target)].parameters())
            counts = node.op == "placeholder" or has_parameters or any(n in found for n in node.all_input_nodes)
        if counts:
            found.add(node)
    return found


def clamp_of(node: fx.Node, modules: Mapping[str, nn.Module]) -> Clamp | None:
    """The activation of a CLAMP node; None when it is no clamp from zero upwards."""
    module = module_of(node, modules)
    name = type(module).__name__ if module is not None else function_name(node)
    match name.lower().rstrip("_"):
        case "relu":
            return RELU
        case "relu6":
            return RELU6
        case "hardtanh":
            if isinstance(module, nn.Hardtanh):
                low, high = module.min_val, module.max_val
            else:
                low = argument(node, 1, "min_val", -1.0)
                high = argument(node, 2, "max_val", 1.0)
            return Clamp(float(low), float(high)) if low == 0.0 and math.isfinite(high) else None
        case "clamp":
            low, high = argument(node, 1, "min", None), argument(node, 2, "max", None)
            if not isinstance(low, int | float) or low != 0 or not isinstance(high, int | float | None):
                return None
            return RELU if high is None else Clamp(0.0, float(high)) if 0 < high < math.inf else None
    return None


def grid_inputs(node: fx.Node, role: Role) -> list[fx.Node]:
    """The inputs that an integer kernel reads from grids."""
    if role in (Role.MOVE, Role.IDENTITY, Role.SCALE, Role.CLAMP, Role.NORM) or (
        role is Role.WEIGHTED and node.op == "call_function"
    ):
        return [n for n in node.all_input_nodes if is_tensor(n)][:1]
    return [n for n in node.all_input_nodes if is_tensor(n)]


def _computes_like(module: nn.Module, cls: type[nn.Module]) -> bool:
    return isinstance(module, cls) and type(module).forward is cls.forward


def argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    """An argument of a call, by position or name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _new_grid(node: fx.Node) -> bool:
    """Whether an arithmetic node joins two tensors (not a tensor and an offset), or reduces over space."""
    name = function_name(node)
    if name in SUMS + PRODUCTS:
        return len(node.args) == 2 and all(is_tensor(a) for a in node.args) and not node.kwargs
    if name == "mean":
        return spatial_mean(node) is not None
    return is_tensor(node)


def spatial_mean(node: fx.Node) -> bool | None:
    """For a mean over height and width of `[N, C, H, W]`: whether it keeps the dimensions; None for another mean."""
    value = node.all_input_nodes[0].meta.get("val") if node.all_input_nodes else None
    dims = argument(node, 1, "dim", None)
    if not isinstance(value, torch.Tensor) or value.ndim != 4 or not isinstance(dims, list | tuple):
        return None
    if {d % 4 for d in dims} != {2, 3} or "dtype" in node.kwargs:
        return None
    return bool(argument(node, 2, "keepdim", False))


def _moves(node: fx.Node) -> bool:
    if node.target is F.pad:  # zero is on every grid, another value need not be
        mode, value = argument(node, 2, "mode", "constant"), argument(node, 3, "value", None)
        return mode == "constant" and not value
    return True
