"""Captured graphs that call quantizers: layers swapped for their fake-quant subclasses under the same names.

At each site of `sites`, either the module that computes the value ends in its quantizer (BatchNorm), or a quantizer is
called behind it; layers that add a bias are told the scale s_x that its int32 will have, b = q * s_x * s_w.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from qat.errors import PlacementError
from qat.functional.ste import IDENTITY, Clamp
from qat.layers import (
    FakeQuantBatchNorm1d,
    FakeQuantBatchNorm2d,
    FakeQuantBatchNorm3d,
    FakeQuantConv1d,
    FakeQuantConv2d,
    FakeQuantConv3d,
    FakeQuantFunction,
    FakeQuantLinear,
    FakeQuantWeight,
)
from qat.layers.batchnorm import _FakeQuantBatchNorm
from qat.layers.frozen import FakeQuantFrozenNorm2d, FrozenNorm2d
from qat.placement.overrides import Choice, Choices
from qat.placement.patterns import Role, argument, function_name, scale_factor, weight_of
from qat.placement.prepared import device_of
from qat.placement.shapes import EXAMPLES
from qat.placement.sites import STAYS, Sites, Tail, writers
from qat.placement.units import Unit
from qat.quantizers import FakeQuantize
from qat.recipe import TensorRecipe
from qat.spec import Granularity, IntSpec

SWAPS: dict[type[nn.Module], Any] = {
    nn.Conv1d: FakeQuantConv1d,
    nn.Conv2d: FakeQuantConv2d,
    nn.Conv3d: FakeQuantConv3d,
    nn.Linear: FakeQuantLinear,
    FrozenNorm2d: FakeQuantFrozenNorm2d,  # before its base
    nn.BatchNorm1d: FakeQuantBatchNorm1d,
    nn.BatchNorm2d: FakeQuantBatchNorm2d,
    nn.BatchNorm3d: FakeQuantBatchNorm3d,
}

# what functional layers take, with its defaults
LINEAR: tuple[tuple[str, Any], ...] = (("input", None), ("weight", None), ("bias", None))
CONV = (*LINEAR, ("stride", 1), ("padding", 0), ("dilation", 1), ("groups", 1))
ARGUMENTS = {"linear": LINEAR, "conv1d": CONV, "conv2d": CONV, "conv3d": CONV}


class Rewriter:
    """Swaps the modules of `root` and rewrites its graphs so that they call the quantizers of `sites`.

    Attributes:
        units: what got a quantizer in the first graph, in its order.
    """

    def __init__(
        self,
        root: nn.Module,
        modules: dict[str, nn.Module],
        choices: Choices,
        graphs: list[tuple[fx.Graph, Sites]],
    ) -> None:
        self.root, self.modules, self.choices, self.graphs = root, modules, choices, graphs
        self.hosts = self._norms_that_host()
        self.bare = self._norms_without_quantizer()
        self.units: list[Unit] = []

    def run(self) -> None:
        """Rewrite all graphs, in place."""
        for graph, sites in self.graphs:
            for head, tail in sites.tails.items():
                if sites.roles[head] is Role.WEIGHTED and head.op == "call_module":
                    self._swap_weighted(head, tail.norm, sites.names[head])
                elif sites.roles[head] is Role.WEIGHTED:
                    self._swap_function(head, sites)
            for norm in (tail.norm for tail in sites.tails.values() if tail.norm is not None):
                if str(norm.target) in self.bare:
                    self._swap_norm(str(norm.target), IDENTITY, None)
            erase = []
            hosts = {node: _host(node, clamp, sites) for node, clamp in sites.points.items()}  # of the graph as it is
            names = writers(sites)
            for node, clamp in sites.points.items():
                erase += self._place(graph, sites, node, clamp, hosts[node], names[node])
            for node in erase:
                graph.erase_node(node)
            for head, tail in sites.tails.items():
                if sites.roles[head] in (Role.WEIGHTED, Role.NORM):
                    self._pass_scales(graph, sites, head, tail.norm)

    def _norms_that_host(self) -> dict[str, Clamp]:
        """BatchNorms that end in their quantizer: called once, with the same activation, wherever they are called."""
        found: dict[str, set[Clamp | None]] = {}
        for graph, sites in self.graphs:
            calls: dict[str, list[fx.Node]] = {}
            for node in graph.nodes:
                if node.op == "call_module":
                    calls.setdefault(str(node.target), []).append(node)
            quantized = {
                tail.norm or head: sites.points[tail.last(head)]
                for head, tail in sites.tails.items()
                if (tail.norm or sites.roles[head] is Role.NORM) and not tail.curve and tail.last(head) in sites.points
            }
            for target, nodes in calls.items():
                clamp = quantized.get(nodes[0]) if len(nodes) == 1 else None
                found.setdefault(target, set()).add(clamp)
        return {t: c for t, clamps in found.items() if len(clamps) == 1 for c in clamps if c is not None}

    def _norms_without_quantizer(self) -> set[str]:
        """BatchNorms whose result goes on inside the operator, into a sum or a curve: called once in every graph."""
        found: list[set[str]] = []
        for graph, sites in self.graphs:
            calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
            inside = {str(t.norm.target) for t in sites.tails.values() if t.norm and _goes_on(t, sites)}
            found.append({target for target in inside if calls[target] == 1})
        return set.intersection(*found)

    def _place(
        self, graph: fx.Graph, sites: Sites, node: fx.Node, clamp: Clamp, host: fx.Node, writer: str
    ) -> list[fx.Node]:
        """Put the quantizer of what `writer` puts out behind `node`; returns the nodes that it makes superfluous."""
        choice = self.choices.of_activation(writer)
        absorbed = node if sites.roles[node] is Role.CLAMP and clamp != IDENTITY else None
        target = str(host.target)
        hosted = host.op == "call_module" and self.hosts.get(target) == clamp and sites.roles[host] is Role.NORM
        name = f"{target}.output_quantizer" if hosted else self._quantizer_name(host, sites)
        if graph is self.graphs[0][0]:
            shape = node.meta["val"].shape
            size = shape.numel() // (EXAMPLES if len(shape) > 1 else 1)
            self._note(writer, "activation", name, size)
        if hosted:
            self._swap_norm(target, clamp, choice)
            quantized = host
        else:
            value = node.all_input_nodes[0] if absorbed else node
            if not isinstance(self.modules.get(name), FakeQuantize):
                self._add(name, self._build(choice))
            with graph.inserting_after(node):
                kwargs: dict[str, Any] = {} if clamp == IDENTITY else {"activation": clamp}
                quantized = graph.create_node("call_module", name, (value,), kwargs)
            quantized.meta = {**node.meta}
        if quantized is not node:
            node.replace_all_uses_with(quantized, delete_user_cb=lambda user: user is not quantized)
        return [absorbed] if absorbed else []

    def _swap_weighted(self, head: fx.Node, norm: fx.Node | None, operator: str) -> None:
        name = str(head.target)
        layer, choice = self.modules[name], self.choices.of_weight(operator)
        folds = norm is not None and choice.spec.granularity is Granularity.PER_TENSOR
        if not isinstance(layer, FakeQuantWeight):
            channels = cast(Tensor, layer.weight).shape[0]
            self._require_free(f"{name}.weight_quantizer")
            if head.graph is self.graphs[0][0]:
                self._note(operator, "weight", f"{name}.weight_quantizer", cast(Tensor, layer.weight).numel())
            quantizer = self._build(choice, channels=channels)
            eps = self.modules[str(norm.target)].eps if folds and norm is not None else None
            swap = SWAPS[next(cls for cls in SWAPS if isinstance(layer, cls))]
            self._replace(name, swap.from_float(layer, quantizer, norm_eps=eps))
        if folds and norm is not None:
            graph = head.graph
            with graph.inserting_before(head):
                affine = self.modules[str(norm.target)].weight is not None
                gamma = graph.get_attr(f"{norm.target}.weight") if affine else None
                var = graph.get_attr(f"{norm.target}.running_var")
            head.args = (*head.args[:1], gamma, var)

    def _swap_function(self, head: fx.Node, sites: Sites) -> None:
        """Turn a functional layer into a module of its own, which is given the weight."""
        function, name = function_name(head), f"{sites.names[head]}_weighted"
        if name not in self.modules:
            shape = cast(fx.Node, weight_of(head)).meta["val"].shape
            if head.graph is self.graphs[0][0]:
                self._note(sites.names[head], "weight", f"{name}.weight_quantizer", shape.numel())
            quantizer = self._build(self.choices.of_weight(sites.names[head]), channels=shape[0])
            self._add(name, FakeQuantFunction(function, quantizer))
        head.args = tuple(argument(head, i, key, default) for i, (key, default) in enumerate(ARGUMENTS[function]))
        head.op, head.target, head.kwargs = "call_module", name, {}

    def _pass_scales(self, graph: fx.Graph, sites: Sites, head: fx.Node, norm: fx.Node | None) -> None:
        """Give the layer that adds the bias the scales that its int32 will have."""
        layer = self.modules[str(head.target)]
        if isinstance(layer, _FakeQuantBatchNorm):  # alone
            with graph.inserting_before(head):
                head.args = (head.args[0], self._scale_of(graph, sites, head), self._unit_scale(graph, head))
        elif norm is None and isinstance(layer, FakeQuantWeight | FakeQuantFunction):
            with graph.inserting_before(head):
                head.kwargs = {"input_scale": self._scale_of(graph, sites, head)}
        elif norm is not None and isinstance(self.modules[str(norm.target)], _FakeQuantBatchNorm):
            with graph.inserting_before(norm):
                scales = [
                    self._scale_of(graph, sites, head),
                    graph.create_node("get_attr", f"{head.target}.weight_quantizer.scale"),
                ]
                bias = [graph.create_node("get_attr", f"{head.target}.bias")] if layer.bias is not None else []
                norm.args = (head, *scales, *bias)

    def _scale_of(self, graph: fx.Graph, sites: Sites, head: fx.Node) -> fx.Node:
        """The scale of the grid that a layer's input is on."""
        source, factor = cast(fx.Node, head.args[0]), 1.0
        while sites.roles.get(source) in STAYS and source not in sites.points:
            factor *= scale_factor(source) or 1.0
            source = source.all_input_nodes[0]
        module = self.modules[str(source.target)]
        quantizer = str(source.target) if isinstance(module, FakeQuantize) else f"{source.target}.output_quantizer"
        scale = graph.create_node("get_attr", f"{quantizer}.scale")
        return scale if factor == 1.0 else graph.call_function(torch.mul, (scale, factor))

    def _unit_scale(self, graph: fx.Graph, head: fx.Node) -> fx.Node:
        """Scales `[C]` of the weight 1 that a BatchNorm alone multiplies its input by: the last integer says it."""
        norm = cast(_FakeQuantBatchNorm, self.modules[str(head.target)])
        if "unit_scale" not in norm._buffers:
            unit = torch.full((norm.num_features,), 1.0 / self.choices.weight.spec.qmax, device=device_of(norm))
            norm.register_buffer("unit_scale", unit, persistent=False)
        return graph.create_node("get_attr", f"{head.target}.unit_scale")

    def _swap_norm(self, name: str, clamp: Clamp, choice: Choice | None) -> None:
        norm = self.modules[name]
        if not isinstance(norm, _FakeQuantBatchNorm):
            self._require_free(f"{name}.output_quantizer")
            swap = SWAPS[next(cls for cls in SWAPS if isinstance(norm, cls))]
            self._replace(name, swap.from_float(norm, clamp, None if choice is None else self._build(choice)))

    def _note(self, operator: str, tensor: str, quantizer: str, size: int) -> None:
        """Write down a unit; a quantizer that is called twice is one."""
        if not any(unit.quantizer == quantizer for unit in self.units):
            fixed = operator in self.choices.fixed.get(tensor, ())
            self.units.append(Unit(name=operator, tensor=tensor, quantizer=quantizer, size=size, open=not fixed))

    def _build(self, choice: Choice, *, channels: int | None = None) -> FakeQuantize:
        """A quantizer on the model's device and in its mode: it must not learn in a model that is in evaluation."""
        quantizer = build_quantizer(choice.recipe, choice.spec, channels=channels)
        return quantizer.to(device_of(self.root)).train(self.root.training)

    def _quantizer_name(self, host: fx.Node, sites: Sites) -> str:
        """`fc.output_quantizer` below a module, `layer1.0.add_quantizer` beside functional code."""
        name = sites.names[host]
        if host.op == "call_module" and name.startswith(str(host.target)):  # not a function that became a module
            count = name.removeprefix(str(host.target))  # "_2" at the second call site
            return f"{host.target}.output_quantizer{count}"
        return f"{name}_quantizer"

    def _replace(self, name: str, module: nn.Module) -> None:
        parent, _, leaf = name.rpartition(".")
        old = self.modules[name]
        setattr(self.root.get_submodule(parent), leaf, module)
        self.modules.update({n: module for n, m in self.modules.items() if m is old})

    def _add(self, name: str, module: nn.Module) -> None:
        self._require_free(name)
        parent, _, leaf = name.rpartition(".")
        self.root.get_submodule(parent).add_module(leaf, module)
        self.modules[name] = module

    def _require_free(self, name: str) -> None:
        parent, _, leaf = name.rpartition(".")
        if hasattr(self.root.get_submodule(parent), leaf):
            raise PlacementError(f"the model already has an attribute {name!r}; rename it, quantizers go by that name")


def _goes_on(tail: Tail, sites: Sites) -> bool:
    """Whether a BatchNorm is read by what its operator takes in, and not rounded."""
    return tail.curve is not None or tail.norm in sites.unrounded


def _host(node: fx.Node, clamp: Clamp, sites: Sites) -> fx.Node:
    """The node that a quantizer is named after, and goes into when it is a BatchNorm.

    That is the node before an absorbed activation, unless others read that node too, or it has a quantizer already.
    """
    if clamp == IDENTITY or sites.roles[node] is not Role.CLAMP:
        return node
    value = node.all_input_nodes[0]
    return value if len(value.users) == 1 and value not in sites.points else node


def build_quantizer(recipe: TensorRecipe, spec: IntSpec, *, channels: int | None = None) -> FakeQuantize:
    """A fake-quant module as the recipe says, on the grid that the target left of it."""
    return recipe.quantizer.build(spec=spec, observer=recipe.observer.build_later(), channels=channels)


__all__ = ["SWAPS", "Rewriter", "build_quantizer"]
