"""From a trained fake-quant model to its integer model: int8 buffers and explicit quantize / dequantize pairs.

    conv(dq(x), dq(w)) + bias  ->  q           x uint8, w int8 with BatchNorm folded in, bias int32 at scale s_x * s_w

The result is a plain `fx.GraphModule` of `quantized_decomposed` operators, the representation that the ONNX exporter,
Inductor and ExecuTorch read. Every value on a grid is stored once as integers; every reader dequantizes it for itself,
so that a runtime can take each operator with its own pair. An activation that the grid's ends already are is left out.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.ao.quantization.fx._decomposed
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from qat.errors import PlacementError
from qat.functional.folding import fit_bias, fold_bias, fold_factor, fold_integers
from qat.functional.ste import IDENTITY, RELU, Clamp
from qat.layers import (
    FakeQuantConv1d,
    FakeQuantConv2d,
    FakeQuantConv3d,
    FakeQuantFunction,
    FakeQuantLinear,
    FakeQuantWeight,
    pruned,
)
from qat.layers.batchnorm import _FakeQuantBatchNorm
from qat.layers.integer import IntegerLayer
from qat.placement.modules import PreparedModules
from qat.placement.patterns import Role, role_of, scale_factor, spatial_mean
from qat.placement.prepare import require_finite
from qat.placement.prepared import PreparedModel, device_of
from qat.quantizers import FakeQuantize
from qat.quantizers.observed import clamp

OPS = torch.ops.quantized_decomposed
Norm = nn.modules.batchnorm._BatchNorm
IN_PLACE = (operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ior, operator.iand)
FACTORIES = (torch.eye, torch.zeros, torch.ones, torch.full, torch.arange, torch.linspace, torch.tensor)
NEW = ("new_zeros", "new_ones", "new_full")


@dataclass(frozen=True)
class OnGrid:
    """A value stored as integers: its node in the integer graph and the grid to read it by."""

    node: fx.Node
    scale: float
    zero_point: int
    qmin: int
    qmax: int

    @property
    def grid(self) -> tuple[Any, ...]:
        """The operands that quantize and dequantize share."""
        dtype = torch.int8 if self.qmin < 0 else torch.uint8
        return self.scale, self.zero_point, self.qmin, self.qmax, dtype


@dataclass(frozen=True)
class _Same:
    """A value, by identity, in the arguments of an operator."""

    of: int


@dataclass(frozen=True)
class Pieces:
    """Several values of one grid, of chunk, split or unbind: a node that yields them in float, and the grid."""

    node: fx.Node
    like: OnGrid


Value = OnGrid | Pieces | fx.Node


def convert(prepared: PreparedModel) -> fx.GraphModule:
    """The integer model, as a copy; `prepared` is untouched and can go on training.

    One that was prepared by modules becomes its own class again, with integer layers in it, and no graph.

    Args:
        prepared: a calibrated (and usually trained) model from `qat.prepare`.

    Raises:
        CalibrationError: a quantizer whose range was never observed.
        NumericsError: NaN or Inf in a weight or range.
    """
    if not isinstance(prepared, PreparedModel):
        raise PlacementError(f"convert needs a model from qat.prepare, got {type(prepared).__name__}")
    return _integer_modules(prepared) if isinstance(prepared, PreparedModules) else _Converter(prepared).run()


@torch.no_grad()
def _integer_modules(prepared: PreparedModules) -> Any:
    require_finite(prepared)
    for name, module in prepared.named_modules():
        if isinstance(module, FakeQuantize):
            module.require_calibrated(name)
    root = cast(PreparedModules, pruned.copied(prepared, masks=False))._root[0]
    for name, layer in list(root.named_modules()):
        if not isinstance(layer, FakeQuantWeight):
            continue
        quantizer, spec = cast(FakeQuantize, layer.input_quantizer), layer.weight_quantizer.spec
        scale, zero_point, qmin, qmax = _grid_of(quantizer)
        q, weight_scale, bias = folded(layer, None)
        steps = None
        if bias is not None:
            q, weight_scale, steps = fit_bias(q, weight_scale, bias, scale)
        grid = (scale, zero_point, qmin, qmax, torch.int8 if qmin < 0 else torch.uint8)
        weight = (q, weight_scale, spec.qmin, spec.qmax)
        root.set_submodule(name, IntegerLayer(functional_form(layer), weight, steps, grid))
    integer = root.eval().requires_grad_(False)
    integer.__dict__["meta"] = {"prepared": {**_about(prepared), "sites": ()}}  # where a GraphModule has it
    return integer


def functional_form(layer: nn.Module) -> Callable[..., Any]:
    """A convolution or linear layer as a function of input, weight and bias."""
    if isinstance(layer, nn.Linear):
        return F.linear
    conv = cast(nn.modules.conv._ConvNd, layer)
    if conv.padding_mode != "zeros":
        raise PlacementError(f"padding_mode={conv.padding_mode!r} needs placement=graph, or exclude the layer")
    function = {FakeQuantConv1d: F.conv1d, FakeQuantConv2d: F.conv2d, FakeQuantConv3d: F.conv3d}[type(layer)]  # type: ignore[index]
    settings = {"stride": conv.stride, "padding": conv.padding, "dilation": conv.dilation, "groups": conv.groups}
    return functools.partial(function, **settings)


class _Converter:
    def __init__(self, prepared: PreparedModel) -> None:
        self.prepared = prepared
        self.source = prepared.graphs[False]
        self.modules = dict(prepared.named_modules())
        self.root = nn.Module()
        self.graph = fx.Graph()
        self.values: dict[fx.Node, Value] = {}
        self.constants: dict[fx.Node, Any] = {}  # made of parameters alone: computed here, stored where it is read
        self.unfolded: dict[fx.Node, fx.Node] = {}  # BatchNorm's node -> the convolution that it folds into
        self.calls: dict[str, int] = {}  # how often a module was called so far
        self.moved: dict[tuple[Any, ...], Value] = {}
        self.sites: dict[fx.Node, str] = {}  # names of the quantized values, in order

    @torch.no_grad()
    def run(self) -> fx.GraphModule:
        self._check()
        for node in self.source.nodes:
            if not self._compute(node):
                self._visit(node)
        self._drop_unread()
        integer = fx.GraphModule(self.root, self.graph, class_name="IntegerModel")
        integer.meta["prepared"] = {**_about(self.prepared), "sites": self._names_of_sites()}
        return integer.eval().requires_grad_(False)

    def _check(self) -> None:
        reached = {str(n.target) for n in self.source.nodes if n.op == "call_module"}
        for name, module in self.modules.items():
            if isinstance(module, FakeQuantize) and (name in reached or name.rpartition(".")[0] in reached):
                module.require_calibrated(name)
        require_finite(self.prepared)

    def _visit(self, node: fx.Node) -> None:
        module = self.modules.get(str(node.target)) if node.op == "call_module" else None
        role = role_of(node, self.modules)
        match node.op:
            case "placeholder":
                self.values[node] = self.graph.placeholder(str(node.target), *node.args[:1])
            case "output":
                self.graph.output(fx.node.map_arg(node.args[0], self._read))
            case "call_module" if isinstance(module, FakeQuantize):
                activation = cast(Clamp, node.kwargs.get("activation", IDENTITY))
                self.values[node] = self._quantize(self._read(node.all_input_nodes[0]), module, activation, node)
            case "call_module" if isinstance(module, FakeQuantFunction):
                self.values[node] = self._function(node, module)
            case "call_module" if isinstance(module, FakeQuantWeight):
                norm = self._norm_after(node)
                if norm is None:
                    self.values[node] = self._weighted(node, module, None)
                else:
                    self.unfolded[norm] = node
            case "call_module" if isinstance(module, Norm) and (node in self.unfolded or _hosts(module)):
                self._norm(node, module)
            case _ if role is Role.ARITHMETIC and (keep := spatial_mean(node)) is not None:
                pooled = self._call(F.adaptive_avg_pool2d, self._read(node.all_input_nodes[0]), 1)
                self.values[node] = pooled if keep else self._call(torch.flatten, pooled, 1)
            case _ if role is Role.MOVE and isinstance(pieces := self.values.get(node.all_input_nodes[0]), Pieces):
                self.values[node] = self._moved(node, pieces.like)
            case _ if role is Role.SCALE and self._reads_grid(node):
                source = cast(OnGrid, self.values[node.all_input_nodes[0]])
                self.values[node] = replace(source, scale=source.scale * cast(float, scale_factor(node)))
            case _ if role is Role.IDENTITY:
                self.values[node] = self.values[node.all_input_nodes[0]]
            case _ if role is Role.MOVE and node.target is F.pad and self._reads_grid(node):
                # on the integers themselves, zero being the zero point: onnxruntime keeps a float Pad in float
                source = cast(OnGrid, self.values[node.all_input_nodes[0]])
                widths = fx.node.map_arg(node.args[1], self._read)
                padded = self._call(F.pad, source.node, widths, value=source.zero_point)
                self.values[node] = replace(source, node=padded)
            case _ if role is Role.MOVE and self._reads_grid(node):
                source = cast(OnGrid, self.values[node.all_input_nodes[0]])
                self.values[node] = self._moved(node, source)
            case _:
                self.values[node] = self._copy(node)

    # values

    def _compute(self, node: fx.Node) -> bool:
        """Compute a value that no input has a part in; in the order of the code, as some write into others."""
        if node.op == "get_attr":
            self.constants[node] = attribute(self.prepared, str(node.target))
            return True
        inputs = node.all_input_nodes
        if node.op in ("placeholder", "output"):
            return False
        if _made_of_literals(node):
            self.constants[node] = _made(node).to(device_of(self.prepared), node.meta["val"].dtype)
            return True
        if not inputs or any(n not in self.constants for n in inputs):
            return False
        module = self.modules.get(str(node.target)) if node.op == "call_module" else None
        arguments: Any = fx.node.map_arg((node.args, node.kwargs), lambda n: self.constants[n])
        args, kwargs = arguments
        if isinstance(module, FakeQuantize):
            module.require_calibrated(str(node.target))
            q = module.integers(clamp(args[0], kwargs.get("activation", IDENTITY)))
            stored = self._buffer(f"{node.target}_integers", q)
            self.values[node] = OnGrid(stored, *_grid_of(module))
        elif node.op == "call_method":
            self.constants[node] = getattr(args[0], str(node.target))(*args[1:], **kwargs)
        else:
            called = cast(Callable[..., Any], module if node.op == "call_module" else node.target)
            self.constants[node] = called(*args, **kwargs)
        return True

    def _reads_grid(self, node: fx.Node) -> bool:
        return isinstance(self.values.get(node.all_input_nodes[0]), OnGrid)

    def _read(self, node: fx.Node) -> Any:
        """The float value, dequantized for this reader alone."""
        if node in self.constants:
            return self._constant(node)
        value = self.values[node]
        if not isinstance(value, OnGrid):
            return value.node if isinstance(value, Pieces) else value
        return self._call(OPS.dequantize_per_tensor.default, value.node, *value.grid)

    def _constant(self, node: fx.Node) -> Any:
        """A constant, as an attribute of the integer model if it is a tensor."""
        value = self.constants[node]
        if not isinstance(value, Tensor):
            return value
        return self._buffer(str(node.target) if node.op == "get_attr" else f"constants.{node.name}", value)

    def _call(self, function: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return self.graph.call_function(function, args, kwargs)

    def _copy(self, node: fx.Node) -> fx.Node:
        """The node as it is, in float."""
        if node.op == "call_module":
            self._attach(str(node.target), _pure(pruned.copied(self.modules[str(node.target)], masks=False)))
        copied = self.graph.node_copy(node, self._read)
        copied.kwargs = {k: v for k, v in copied.kwargs.items() if k != "inplace"}  # readers read this node
        return copied

    def _moved(self, node: fx.Node, like: OnGrid) -> Value:
        """A value that an operator moves, on its grid; the same one again where the same was moved the same way.

        Exporters merge operators that compute the same, and sites would lose count.
        """
        same: Any = lambda n: _Same(id(self.values.get(n, n)))  # noqa: E731
        arguments = fx.node.map_arg((node.args, node.kwargs), same)
        called = repr(self.modules[str(node.target)]) if node.op == "call_module" else node.target  # pooling, say
        key = (node.op, called, repr(arguments))
        if key not in self.moved:
            self.moved[key] = self._requantize(self._copy(node), like, node)
        return self.moved[key]

    def _requantize(self, value: fx.Node, like: OnGrid, original: fx.Node) -> Value:
        """Back onto the grid that it came from: exact, for an operator that only moves values."""
        if isinstance(original.meta.get("val"), list | tuple):
            return Pieces(value, like)  # its elements are put on the grid one by one
        return self._on_grid(value, original, *like.grid[:4])

    def _on_grid(self, value: fx.Node, site: fx.Node, *grid: Any) -> OnGrid:
        """Quantize a value; `site` is the node of the prepared graph whose integers these are."""
        quantized = self._call(OPS.quantize_per_tensor.default, value, *OnGrid(value, *grid).grid)
        self.sites[quantized] = site.name
        return OnGrid(quantized, *grid)

    def _drop_unread(self) -> None:
        """What nobody reads, as exporters leave it out: pieces of a split value, tokens beside the last class token."""
        for node in reversed(list(self.graph.nodes)):
            if not node.users and not _writes(node):
                self.graph.erase_node(node)

    def _names_of_sites(self) -> tuple[str, ...]:
        return tuple(self.sites[node] for node in self.graph.nodes if node in self.sites)

    def _quantize(self, value: fx.Node, quantizer: FakeQuantize, activation: Clamp, site: fx.Node) -> OnGrid:
        spec = quantizer.spec
        scale, zero = float(quantizer.scale), int(quantizer.zero_point)
        low_is_end = activation.low * 1.0 <= (spec.qmin - zero) * scale
        high_is_end = activation.high / scale >= spec.qmax - zero - 0.5  # rounds to the last integer, or beyond
        if not (low_is_end and high_is_end):
            if activation == RELU:
                value = self._call(F.relu, value)
            else:
                value = self._call(F.hardtanh, value, activation.low, activation.high)
        return self._on_grid(value, site, *_grid_of(quantizer))

    # convolutions and linear layers

    def _norm_after(self, node: fx.Node) -> fx.Node | None:
        user = next(iter(node.users)) if len(node.users) == 1 else None
        if user is None or user.op != "call_module":
            return None
        return user if isinstance(self.modules[str(user.target)], Norm) else None

    def _norm(self, node: fx.Node, norm: nn.Module) -> None:
        head = self.unfolded.get(node)
        if head is None:
            value = self._norm_alone(node, cast(Norm, norm))
        else:
            value = self._weighted(head, cast(FakeQuantWeight, self.modules[str(head.target)]), cast(Norm, norm))
        if isinstance(norm, _FakeQuantBatchNorm):
            self.values[node] = self._quantize(value, norm.output_quantizer, norm.activation, node)
        else:
            self.values[node] = value

    def _norm_alone(self, node: fx.Node, norm: Norm) -> fx.Node:
        """A BatchNorm as a depthwise convolution with one tap: the weight 1, with BatchNorm folded in, is exact."""
        source = self._source(node)
        spec, shape = self.prepared.numerics.weight, (norm.num_features, 1, *[1] * (node.meta["val"].ndim - 2))
        var, mean = cast(Tensor, norm.running_var), cast(Tensor, norm.running_mean)
        gamma, beta = affine_of(norm)
        factor = fold_factor(gamma, var, norm.eps)
        ones = torch.full(shape, spec.qmax, dtype=torch.int8, device=var.device)
        q, scale = fold_integers(ones, torch.full_like(var, 1.0 / spec.qmax), factor)
        bias = fold_bias(None, mean, beta, factor)
        parameters = self._parameters(node, source, q, scale, bias, spec.qmin, spec.qmax)
        function = (F.conv1d, F.conv2d, F.conv3d)[len(shape) - 3]
        return self._call(function, self._read(node.all_input_nodes[0]), *parameters, 1, 0, 1, norm.num_features)

    def _weighted(self, node: fx.Node, layer: FakeQuantWeight, norm: Norm | None) -> fx.Node:
        source = self._source(node)
        q, scale, bias = folded(layer, norm)
        spec = layer.weight_quantizer.spec
        parameters = self._parameters(node, source, q, scale, bias, spec.qmin, spec.qmax)
        return self._product(layer, self._read(node.all_input_nodes[0]), *parameters)

    def _function(self, node: fx.Node, layer: FakeQuantFunction) -> fx.Node:
        """A functional layer, whose weight and bias are constants here."""
        source, quantizer = self._source(node), layer.weight_quantizer
        weight: Any = self.constants[cast(fx.Node, node.args[1])]
        bias: Any = self.constants[node.args[2]] if isinstance(node.args[2], fx.Node) else None
        q, scale = quantizer.integers(weight), quantizer.scale.clone()
        parameters = self._parameters(node, source, q, scale, bias, quantizer.spec.qmin, quantizer.spec.qmax)
        return self._call(getattr(F, layer.name), self._read(node.all_input_nodes[0]), *parameters, *node.args[3:])

    def _source(self, node: fx.Node) -> OnGrid:
        source = self.values.get(node.all_input_nodes[0])
        if not isinstance(source, OnGrid):
            raise PlacementError(f"{node.target}: its input is not quantized, so its weight cannot be an integer's")
        return source

    def _parameters(
        self, node: fx.Node, source: OnGrid, q: Tensor, scale: Tensor, bias: Tensor | None, qmin: int, qmax: int
    ) -> tuple[fx.Node, fx.Node | None]:
        """Weight and bias of a layer as stored integers, dequantized."""
        steps = None
        if bias is not None:
            q, scale, steps = fit_bias(q, scale, bias, source.scale)
        name = self._site(str(node.target))
        weight = self._stored(f"{name}.weight", q, scale, qmin, qmax)
        if steps is None:
            return weight, None
        limits = torch.iinfo(torch.int32)
        return weight, self._stored(f"{name}.bias", steps, scale * source.scale, limits.min + 1, limits.max)

    def _stored(self, name: str, q: Tensor, scale: Tensor, qmin: int, qmax: int) -> fx.Node:
        """A buffer of integers and the node that dequantizes it."""
        node = self._buffer(name, q)
        if scale.ndim == 0:
            return self._call(OPS.dequantize_per_tensor.default, node, float(scale), 0, qmin, qmax, q.dtype)
        scales = self._buffer(f"{name}_scale", scale)
        # onnxruntime runs a linear layer on integers only if its weight has zero points; elsewhere they are just bytes
        zeros = self._buffer(f"{name}_zero_point", torch.zeros_like(q[:, 0])) if q.ndim == 2 else None
        return self._call(OPS.dequantize_per_channel.default, node, scales, zeros, 0, qmin, qmax, q.dtype)

    def _product(self, layer: nn.Module, x: fx.Node, weight: fx.Node, bias: fx.Node | None) -> fx.Node:
        if isinstance(layer, FakeQuantLinear):
            return self._call(F.linear, x, weight, bias)
        conv = cast(nn.modules.conv._ConvNd, layer)
        padding: Any = conv.padding
        if conv.padding_mode != "zeros":
            x = self._call(F.pad, x, tuple(conv._reversed_padding_repeated_twice), mode=conv.padding_mode)
            padding = (0,) * len(conv.kernel_size)
        function = {FakeQuantConv1d: F.conv1d, FakeQuantConv2d: F.conv2d, FakeQuantConv3d: F.conv3d}[type(layer)]  # type: ignore[index]
        return self._call(function, x, weight, bias, conv.stride, padding, conv.dilation, conv.groups)

    # the new root

    def _site(self, name: str) -> str:
        """A name per call of a module: its input's scale, and so its bias, may differ."""
        self.calls[name] = count = self.calls.get(name, 0) + 1
        return name if count == 1 else f"{name}_call{count}"

    def _container(self, path: str) -> nn.Module:
        at = self.root
        for part in path.split(".") if path else []:
            if part not in at._modules:
                at.add_module(part, nn.Module())
            at = cast(nn.Module, at._modules[part])
        return at

    def _attach(self, path: str, module: nn.Module) -> None:
        parent, _, leaf = path.rpartition(".")
        host = self._container(parent)
        if leaf not in host._modules:
            host.add_module(leaf, module)

    def _buffer(self, path: str, tensor: Tensor) -> fx.Node:
        parent, _, leaf = path.rpartition(".")
        host = self._container(parent)
        if leaf not in host._buffers:
            host.register_buffer(leaf, tensor.detach().clone())
        return self.graph.create_node("get_attr", path)


def attribute(root: nn.Module, path: str) -> Any:
    """An attribute by its path."""
    value: Any = root
    for part in path.split("."):
        value = getattr(value, part)
    return value


def affine_of(norm: Norm) -> tuple[Tensor, Tensor]:
    """Gamma and beta `[C]` of a BatchNorm, also of one that has none."""
    var = cast(Tensor, norm.running_var)
    gamma = norm.weight if norm.weight is not None else torch.ones_like(var)
    return gamma, norm.bias if norm.bias is not None else torch.zeros_like(var)


def _grid_of(quantizer: FakeQuantize) -> tuple[float, int, int, int]:
    return float(quantizer.scale), int(quantizer.zero_point), quantizer.spec.qmin, quantizer.spec.qmax


def folded(layer: FakeQuantWeight, norm: nn.Module | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Integers `[C_out, ...]`, scale (scalar or `[C_out]`) and float bias `[C_out]` of a layer with its BatchNorm.

    Args:
        layer: a fake-quant convolution or linear layer.
        norm: the BatchNorm that follows, None for none.
    """
    quantizer = layer.weight_quantizer
    weight, bias = layer.kept_weight(), layer.bias
    if norm is None:
        return quantizer.integers(weight), quantizer.scale.clone(), bias
    norm = cast(Norm, norm)
    var, mean = cast(Tensor, norm.running_var), cast(Tensor, norm.running_mean)
    gamma, beta = affine_of(norm)
    factor = fold_factor(gamma, var, norm.eps)
    new_bias = fold_bias(bias, mean, beta, factor)
    if quantizer.shape:
        q, scale = fold_integers(quantizer.integers(weight), quantizer.scale, factor)
    else:
        q, scale = quantizer.integers(weight * layer.fold(gamma, var)), quantizer.scale.clone()
    return q, scale, new_bias


def _writes(node: fx.Node) -> bool:
    """Whether a node may do more than return a value: inputs and outputs, modules, operators in place."""
    if node.op not in ("call_function", "call_method") or node.is_impure() or node.kwargs.get("inplace"):
        return True
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
    return name.endswith("_") or name == "setitem" or (node.target in IN_PLACE)


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


def _pure(module: nn.Module) -> nn.Module:
    """Without its quantizers, and without writing into its input: exporters would have to undo that first."""
    for name in [n for n, child in module.named_children() if isinstance(child, FakeQuantize)]:
        delattr(module, name)
    if getattr(module, "inplace", False) and type(module).__module__.startswith("torch.nn"):
        setattr(module, "inplace", False)  # noqa: B010  # mypy takes attributes of modules for tensors
    return module


def _hosts(module: nn.Module) -> bool:
    return isinstance(module, _FakeQuantBatchNorm)


def _about(prepared: PreparedModel) -> dict[str, Any]:
    return {
        "example_inputs": prepared.example_inputs,
        "recipe": prepared.recipe.name,
        "target": prepared.target,
        "model": prepared.plan.model,
    }
