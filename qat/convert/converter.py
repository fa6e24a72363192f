"""The walk over a prepared graph that writes the integer one, node by node."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from qat.convert import weighted
from qat.convert.constants import Constants
from qat.convert.folding import Norm
from qat.convert.graph import IntegerGraph
from qat.convert.origin import origin
from qat.convert.values import Grid, OnGrid, Pieces, Value
from qat.errors import PlacementError
from qat.functional.ste import IDENTITY, RELU, Clamp
from qat.layers import FakeQuantFunction, FakeQuantWeight, pruned
from qat.layers.batchnorm import _FakeQuantBatchNorm
from qat.placement.patterns import Role, narrowed, role_of, scale_factor, spatial_mean, unclamped_hardsigmoid
from qat.placement.prepare import require_finite
from qat.placement.prepared import PreparedModel
from qat.quantizers import FakeQuantize
from qat.quantizers.observed import clamp


@dataclass(frozen=True)
class _Same:
    """A value, by identity, in the arguments of an operator."""

    of: int


class Converter:
    """Turns a prepared model's evaluation graph into an integer model.

    Args:
        prepared: a calibrated model with a graph; only read.
    """

    def __init__(self, prepared: PreparedModel) -> None:
        self.prepared = prepared
        self.source = prepared.graphs[False]
        self.constants = Constants(prepared)
        self.modules = self.constants.modules
        self.target = IntegerGraph({*prepared._modules, *prepared._parameters, *prepared._buffers})
        self.values: dict[fx.Node, Value] = {}  # by node of the prepared graph
        self.unfolded: dict[fx.Node, fx.Node] = {}  # BatchNorm's node -> the convolution that it folds into
        self.moved: dict[tuple[Any, ...], Value] = {}  # by operator and arguments

    @torch.no_grad()
    def run(self) -> fx.GraphModule:
        """The integer model.

        Raises:
            CalibrationError: a quantizer that the graph reaches and whose range was never observed.
            NumericsError: NaN or Inf in a weight or range.
        """
        self._check()
        for node in self.source.nodes:
            if not self.constants.compute(node):
                self._visit(node)
        integer, sites = self.target.finished()
        integer.meta.update(origin(self.prepared, sites))
        return integer

    def _check(self) -> None:
        called, reached = (
            {str(n.target) for graph in graphs for n in graph.nodes if n.op == "call_module"}
            for graphs in (self.prepared.graphs.values(), [self.source])
        )
        for name, module in self.modules.items():
            inside = name not in called and name.rpartition(".")[0] in reached  # not called by the training graph alone
            if isinstance(module, FakeQuantize) and (name in reached or inside):
                module.require_calibrated(name)
        require_finite(self.prepared)

    def _visit(self, node: fx.Node) -> None:
        module = self.modules.get(str(node.target)) if node.op == "call_module" else None
        role = role_of(node, self.modules)
        match node.op:
            case "placeholder":
                self.values[node] = self.target.graph.placeholder(str(node.target), *node.args[:1])
            case "output":
                self.target.graph.output(fx.node.map_arg(node.args[0], self._read))
            case "call_module" if isinstance(module, FakeQuantize):
                self.values[node] = self._quantizer(node, module)
            case "call_module" if isinstance(module, FakeQuantFunction):
                self.values[node] = self._function(node, module)
            case "call_module" if isinstance(module, FakeQuantWeight):
                norm = self._norm_after(node)
                if norm is None:
                    self.values[node] = weighted.layer(self.target, str(node.target), module, None, self._source(node))
                else:
                    self.unfolded[norm] = node
            case "call_module" if isinstance(module, Norm) and (node in self.unfolded or _hosts(module)):
                self.values[node] = self._norm(node, module)
            case _ if role is Role.ARITHMETIC and (keep := spatial_mean(node)) is not None:
                pooled = self.target.call(F.adaptive_avg_pool2d, self._read(node.all_input_nodes[0]), 1)
                self.values[node] = pooled if keep else self.target.call(torch.flatten, pooled, 1)
            case _ if node.target is unclamped_hardsigmoid and isinstance(of := self._input(node), OnGrid):
                sixth = self.target.dequantize(replace(of, grid=of.grid.times(1 / 6)))
                self.values[node] = self.target.call(torch.add, sixth, self._half(of.grid))
            case _ if role is Role.IDENTITY or node.target is narrowed:
                self.values[node] = self.values[node.all_input_nodes[0]]
            case _ if role is Role.MOVE and isinstance(of := self._input(node), OnGrid | Pieces):
                self.values[node] = self._move(node, of)
            case _ if role is Role.SCALE and isinstance(of := self._input(node), OnGrid):
                self.values[node] = replace(of, grid=of.grid.times(cast(float, scale_factor(node))))
            case _:
                self.values[node] = self._copy(node)

    # values

    def _input(self, node: fx.Node) -> Value | None:
        return self.values.get(node.all_input_nodes[0])

    def _read(self, node: fx.Node) -> Any:
        """The float value, dequantized for this reader alone."""
        if node in self.constants:
            return self._constant(node)
        value = self.values[node]
        if isinstance(value, OnGrid):
            return self.target.dequantize(value)
        return value.node if isinstance(value, Pieces) else value

    def _constant(self, node: fx.Node) -> Any:
        """A constant, as an attribute of the integer model if it is a tensor."""
        value = self.constants[node]
        if not isinstance(value, Tensor):
            return value
        return self.target.buffer(str(node.target) if node.op == "get_attr" else self.target.own(node.name), value)

    def _half(self, like: Grid) -> fx.Node:
        """The number 1/2 as a sum of integers reads it: one step, of that size."""
        grid = Grid(0.5, 0, like.qmin, like.qmax)
        return self.target.dequantize(
            OnGrid(self.target.buffer(self.target.own("hardsigmoid_half"), torch.ones((), dtype=grid.dtype)), grid)
        )

    def _copy(self, node: fx.Node) -> fx.Node:
        """The node as it is, in float."""
        copied = self.target.graph.node_copy(node, self._read)
        if node.op == "call_module":
            module = _pure(pruned.copied(self.modules[str(node.target)], masks=False))
            copied.target = self.target.attach(str(node.target), module)
        copied.kwargs = {k: v for k, v in copied.kwargs.items() if k != "inplace"}  # readers read this node
        return copied

    def _move(self, node: fx.Node, of: OnGrid | Pieces) -> Value:
        """A value that an operator moves, on its grid; the same one again where the same was moved the same way.

        Exporters merge operators that compute the same, and sites would lose count.
        """
        if isinstance(of, OnGrid) and node.target is F.pad:
            # on the integers themselves, zero being the zero point: onnxruntime keeps a float Pad in float
            widths = fx.node.map_arg(node.args[1], self._read)
            return replace(of, node=self.target.call(F.pad, of.node, widths, value=of.grid.zero_point))
        same: Any = lambda n: _Same(id(self.values.get(n, n)))  # noqa: E731
        arguments = fx.node.map_arg((node.args, node.kwargs), same)
        called = repr(self.modules[str(node.target)]) if node.op == "call_module" else node.target  # pooling, say
        key = (node.op, called, repr(arguments))
        if key not in self.moved:
            moved = self._copy(node)
            several = isinstance(node.meta.get("val"), list | tuple)  # its elements are put on the grid one by one
            self.moved[key] = Pieces(moved, of.grid) if several else self.target.quantize(moved, node, of.grid)
        return self.moved[key]

    # quantizers

    def _quantizer(self, node: fx.Node, quantizer: FakeQuantize) -> OnGrid:
        value, activation = node.all_input_nodes[0], cast(Clamp, node.kwargs.get("activation", IDENTITY))
        if value not in self.constants:
            return self._quantized(self._read(value), quantizer, activation, node)
        q = quantizer.integers(clamp(self.constants[value], activation))
        return OnGrid(self.target.buffer(f"{node.target}_integers", q), Grid.of(quantizer))

    def _quantized(self, value: fx.Node, quantizer: FakeQuantize, activation: Clamp, site: fx.Node) -> OnGrid:
        """A value on its quantizer's grid, behind its activation where the grid's ends are not already that."""
        grid = Grid.of(quantizer)
        low_is_end = activation.low * 1.0 <= (grid.qmin - grid.zero_point) * grid.scale
        # rounds to the last integer, or beyond
        high_is_end = activation.high / grid.scale >= grid.qmax - grid.zero_point - 0.5
        if not (low_is_end and high_is_end):
            if activation == RELU:
                value = self.target.call(F.relu, value)
            else:
                value = self.target.call(F.hardtanh, value, activation.low, activation.high)
        return self.target.quantize(value, site, grid)

    # layers with weights, and the BatchNorm behind them

    def _norm_after(self, node: fx.Node) -> fx.Node | None:
        user = next(iter(node.users)) if len(node.users) == 1 else None
        if user is None or user.op != "call_module":
            return None
        return user if isinstance(self.modules[str(user.target)], Norm) else None

    def _norm(self, node: fx.Node, norm: Norm) -> Value:
        head = self.unfolded.get(node)
        if head is None:
            spec, spatial = self.prepared.numerics.weight, node.meta["val"].ndim - 2
            value = weighted.batchnorm(self.target, str(node.target), norm, spec, spatial, self._source(node))
        else:
            layer = cast(FakeQuantWeight, self.modules[str(head.target)])
            value = weighted.layer(self.target, str(head.target), layer, norm, self._source(head))
        if isinstance(norm, _FakeQuantBatchNorm) and norm.output_quantizer is not None:
            return self._quantized(value, norm.output_quantizer, norm.activation, node)
        return value

    def _function(self, node: fx.Node, layer: FakeQuantFunction) -> fx.Node:
        source = self._source(node)
        weight: Any = self.constants[node.args[1]]
        bias: Any = self.constants[node.args[2]] if isinstance(node.args[2], fx.Node) else None
        return weighted.function(self.target, str(node.target), layer, (weight, bias, *node.args[3:]), source)

    def _source(self, node: fx.Node) -> OnGrid:
        source = self._input(node)
        if not isinstance(source, OnGrid):
            raise PlacementError(f"{node.target}: its input is not quantized, so its weight cannot be an integer's")
        return source


def _pure(module: nn.Module) -> nn.Module:
    """Without its quantizers, and without writing into its input: exporters would have to undo that first."""
    for name in [n for n, child in module.named_children() if isinstance(child, FakeQuantize)]:
        delattr(module, name)
    if getattr(module, "inplace", False) and type(module).__module__.startswith("torch.nn"):
        setattr(module, "inplace", False)  # noqa: B010  # mypy takes attributes of modules for tensors
    return module


def _hosts(module: nn.Module) -> bool:
    return isinstance(module, _FakeQuantBatchNorm)
