"""A prepared model: the float model's own modules, run by the captured graphs."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import linecache
import sys
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map_only

from qat.errors import PlacementError
from qat.functional.ste import Clamp
from qat.placement.fixed import FixedArguments
from qat.placement.plan import Plan
from qat.placement.units import Unit
from qat.quantizers import FakeQuantize
from qat.recipe import Numerics, QuantRecipe
from qat.target import Target


class PreparedModel(nn.Module):
    """The fake-quant copy of a float model. Trains, saves and loads like it, under the same parameter names.

    Attributes:
        graphs: the captured forward in training and in evaluation mode, by `training`.
        plan: what is quantized how, and what is not and why.
        recipe: as the user gave it.
        target: where the model will run.
        numerics: the grids that came of both.
        example_inputs: two examples, for export.
        units: the tensors with a grid, of the evaluation graph; none for a model that was prepared without a graph.
        fixed_arguments: those of forward that the graphs have at one value.
    """

    def __init__(
        self,
        root: nn.Module,
        graphs: dict[bool, fx.Graph],
        *,
        plan: Plan,
        recipe: QuantRecipe,
        target: Target,
        numerics: Numerics,
        example_inputs: tuple[Any, ...],
        units: tuple[Unit, ...] = (),
        fixed_arguments: FixedArguments | None = None,
    ) -> None:
        super().__init__()
        _require_free(root)
        self.training = root.training
        for registry in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"):
            setattr(self, registry, getattr(root, registry))
        self.graphs = {mode: plain_copy(graph) for mode, graph in graphs.items()}
        self.plan, self.recipe, self.target, self.numerics = plan, recipe, target, numerics
        self.example_inputs, self.units = example_inputs, units
        self.fixed_arguments = fixed_arguments or FixedArguments()
        self.batchnorm_frozen = False
        self._compile()

    @torch.compiler.disable
    def _compile(self) -> None:
        # fx generates the functions; they read everything from the module they are called on, so copies share them
        self._forwards: dict[bool, Any] = {mode: _function(graph) for mode, graph in self.graphs.items()}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the float model's forward.

        Raises:
            CaptureError: a setting has another value than the example's.
        """
        if not self.fixed_arguments.empty:
            args, kwargs = self.fixed_arguments.left(args, kwargs, self.training)
        if not self._forwards:
            self._compile()
        return self._forwards[self.training](self, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """Layers and parameters, which are the float model's; nothing else of it is here."""
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            raise AttributeError(
                f"the prepared model has no {name!r}: it has the float model's layers, parameters and forward. "
                "Other attributes and methods are not captured; ask the float model, or make the method a forward"
            ) from error

    def train(self, mode: bool = True) -> PreparedModel:
        """Switch mode; frozen BatchNorm statistics stay frozen."""
        super().train(mode)
        if self.batchnorm_frozen:
            for norm in batchnorms(self):
                norm.training = False
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Without the generated functions, and with graphs as flat lists: a linked list of nodes recurses too deep."""
        state = {k: v for k, v in self.__dict__.items() if k != "_forwards"}
        return {**state, "graphs": {mode: _flatten(graph) for mode, graph in self.graphs.items()}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Generate the functions again, when they are called: a layer in a cycle may not be there yet."""
        super().__setstate__(state)
        self.graphs = {mode: _unflatten(nodes) for mode, nodes in state["graphs"].items()}
        self._forwards = {}


def _require_free(root: nn.Module) -> None:
    """Raise for a layer or parameter at the root whose name a prepared model needs."""
    own = {*inspect.signature(PreparedModel).parameters, "batchnorm_frozen"} - {"root"}
    taken = sorted(own & {*root._modules, *root._parameters, *root._buffers})
    if taken:
        raise PlacementError(
            f"{type(root).__name__}.{taken[0]} bears the name of an attribute of the prepared model, "
            f"prepared.{taken[0]}: give it another, or wrap the model in a module of one attribute"
        )


def _function(graph: fx.Graph) -> Any:
    """A graph as a function of the model and its inputs, whose lines a traceback shows."""
    graph.lint()
    code = graph.python_code("self")
    file = f"<graph {hashlib.sha256(code.src.encode()).hexdigest()[:16]}>"
    linecache.cache[file] = (len(code.src), None, code.src.splitlines(keepends=True), file)  # no mtime: kept
    scope = dict(code.globals)
    exec(compile(code.src, file, "exec", dont_inherit=True), scope)
    return scope["forward"]


def plain_copy(graph: fx.Graph) -> fx.Graph:
    """A copy without an owner, with shapes alone for what each value is, so that it pickles."""
    new = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    result = new.graph_copy(graph, mapping)
    new.output(result)
    for node, copied in mapping.items():
        copied.meta = {"val": tree_map_only(Tensor, _shape_alone, node.meta.get("val"))}
    return new


def _shape_alone(value: Tensor) -> Tensor:
    return torch.empty(value.shape, dtype=value.dtype, device="meta")


class _Ref(NamedTuple):
    """A node, in the arguments of another."""

    position: int


def _flatten(graph: fx.Graph) -> list[tuple[Any, ...]]:
    index = {node: i for i, node in enumerate(graph.nodes)}

    def refer(argument: Any) -> Any:
        return fx.node.map_arg(argument, lambda n: _Ref(index[n]))

    return [(n.op, _by_name(n.target), refer(n.args), refer(n.kwargs), n.name, n.meta.get("val")) for n in graph.nodes]


class _Function(NamedTuple):
    """A function, by the name under which its module offers it."""

    module: str
    name: str


def _by_name(target: Any) -> Any:
    """What pickle would not find (`F.max_pool2d` calls itself `boolean_dispatch.<locals>.fn`), by name."""
    module, name = str(getattr(target, "__module__", "")), str(getattr(target, "__name__", ""))
    hidden = "<locals>" in getattr(target, "__qualname__", "")
    return _Function(module, name) if hidden and getattr(sys.modules.get(module), name, None) is target else target


def _unflatten(rows: list[tuple[Any, ...]]) -> fx.Graph:
    graph = fx.Graph()
    nodes: list[fx.Node] = []

    def resolve(argument: Any) -> Any:
        if isinstance(argument, _Ref):
            return nodes[argument.position]
        if isinstance(argument, dict):
            return {k: resolve(v) for k, v in argument.items()}
        if isinstance(argument, slice):
            return slice(resolve(argument.start), resolve(argument.stop), resolve(argument.step))
        if isinstance(argument, Clamp):
            return argument
        if isinstance(argument, list | tuple):
            return type(argument)(resolve(a) for a in argument)
        return argument

    for op, target, args, kwargs, name, value in rows:
        if isinstance(target, _Function):
            target = getattr(importlib.import_module(target.module), target.name)
        nodes.append(graph.create_node(op, target, resolve(tuple(args)), resolve(dict(kwargs)), name))
        nodes[-1].meta["val"] = value
    return graph


def batchnorms(model: nn.Module) -> list[nn.Module]:
    """All BatchNorm layers of a model, fused or not."""
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]


def quantizers(model: nn.Module) -> dict[str, FakeQuantize]:
    """All fake-quant modules of a model by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, FakeQuantize)}


def device_of(model: nn.Module) -> Any:
    """The device of the first parameter or buffer; asked for every quantizer, so it lists no others."""
    first: Tensor | None = next(chain(model.parameters(), model.buffers()), None)
    return first.device if first is not None else "cpu"
