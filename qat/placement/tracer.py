"""Tracers: from a forward to a torch.fx graph.

    Tracer        sizes are values of the graph, so it serves every image size; branches on sizes fail
    SizedTracer   also runs each operator, on tensors without data: sizes are numbers, except those that depend on the
                  batch; branches on sizes are decided by the example, and the graph serves its size alone

A BatchNorm with a forward of its own (timm puts the activation into it) is recorded as a plain one and what follows.
Both keep torch.nn layers whole, but open `scaled_dot_product_attention` and `einsum` into matrix products. The sized
one also opens functions that are given weights, which `torch.fx.wrap` closes, so that their products are quantized.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FunctionType
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from qat.errors import CaptureError
from qat.inputs import entry_name, map_examples
from qat.layers.attention import dot_product_attention
from qat.layers.einsum import is_matrix_product, matrix_product
from qat.layers.frozen import FrozenNorm2d
from qat.placement.containers import Asked, Facts, What, opened
from qat.placement.fake import Shapes, methodcaller
from qat.placement.sites import NAMED

WHOLE = frozenset({"StochasticDepth", "DropPath"})  # drop residual branches in training; nothing in evaluation
FACTORIES = ("zeros", "ones", "empty", "full", "arange", "rand", "randn")  # torch.*: take sizes, but no tensor
BATCH = 10007  # examples; a prime: sizes and counts that depend on the batch are its multiples, and stay in the graph
NUMBERS = (bool, int, float, str, torch.dtype, torch.layout)


class Tracer(fx.Tracer):
    """Symbolic: nothing is computed.

    Args:
        leaf_modules: classes to keep whole.
        inputs: examples by name of argument; forward sees a dict, list or tuple as one, with proxies in it.
        constants: values of arguments that are none of the graph.
    """

    def __init__(
        self,
        leaf_modules: tuple[type[nn.Module], ...],
        inputs: Mapping[str, Any],
        constants: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.leaf_modules, self.examples, self.constants = leaf_modules, inputs, constants
        self.entries: list[tuple[fx.Node, tuple[Any, ...]]] = []  # of dicts, lists and tuples, read or not
        self.facts: Facts = {}  # what forward asked of them
        self.plain: dict[fx.Node, tuple[Asked, Any]] = {}  # inputs that are no tensors, and may become constants
        self.opened_norms: set[str] = set()  # paths of BatchNorms with a forward of their own, recorded as plain ones
        self.names: dict[int, str] = {}  # of parameters and buffers, by identity

    def trace(self, root: nn.Module, concrete_args: dict[str, Any] | None = None) -> fx.Graph:  # type: ignore[override]
        """The graph of `root`'s forward."""
        self.names = {id(x): name for name, x in [*root.named_buffers(), *root.named_parameters()]}
        graph = super().trace(root, concrete_args)
        for entry, path in reversed(self.entries):
            if entry.users:
                self.facts[Asked(What.HAS, path)] = True
            else:
                graph.erase_node(entry)
        return graph

    def create_args_for_root(self, *args: Any, **kwargs: Any) -> Any:
        """Forward and its arguments as it sees them: proxies, containers of proxies, and constants."""
        forward, given = super().create_args_for_root(*args, **kwargs)
        return forward, [self._argument(x) if isinstance(x, fx.Proxy) else x for x in given]

    def _argument(self, proxy: fx.Proxy) -> Any:
        name = str(proxy.node.target).lstrip("*")
        if name not in self.constants:
            return self._opened(proxy, (name,), self.examples.get(name))
        self.graph.erase_node(proxy.node)
        fixed = self.constants[name]  # keywords that the example has not are facts, where forward looks for them
        return self._opened(proxy, (name,), fixed) if str(proxy.node.target).startswith("**") else fixed

    def _opened(self, proxy: fx.Proxy, path: tuple[Any, ...], example: Any) -> Any:
        self._note(proxy.node, path, example)
        return opened(proxy, example, path, self.entry, self.facts)

    def entry(self, container: fx.Proxy, path: tuple[Any, ...], example: Any) -> fx.Proxy:
        """A proxy of a container's entry; its value stays open, also where it is a number."""
        proxy = Tracer.create_proxy(self, "call_function", operator.getitem, (container, path[-1]), {})
        proxy.node.meta[NAMED] = entry_name("_".join(map(str, path)))
        self.entries.append((proxy.node, path))
        self._note(proxy.node, path, example)
        return proxy

    def _note(self, node: fx.Node, path: tuple[Any, ...], example: Any) -> None:
        if not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(example)):
            self.plain[node] = Asked(What.VALUE, path), example

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Record the reading of a parameter, found by identity: fx looks through all of them every time."""
        name = self.names.get(id(attr_val)) if isinstance(attr_val, nn.Parameter) else None
        if name is None:
            return attr_val
        if name not in parameter_proxy_cache:
            parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {})
        return parameter_proxy_cache[name]

    def create_arg(self, a: Any) -> Any:
        """An argument as the graph has it; of a tensor of the model, its name."""
        name = self.names.get(id(a)) if isinstance(a, Tensor) else None
        return super().create_arg(a) if name is None else self.create_node("get_attr", name, (), {})

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Layers of torch.nn, classes that the caller named, and stochastic depth."""
        whole = isinstance(m, (FrozenNorm2d, *self.leaf_modules)) or type(m).__name__ in WHOLE
        return whole or super().is_leaf_module(m, module_qualified_name)

    def _norm(self, args: tuple, kwargs: dict) -> str | None:
        """The BatchNorm whose statistics a functional one is given."""
        mean = kwargs.get("running_mean", args[1] if len(args) > 1 else None)
        norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
        own = (n for n, m in self.root.named_modules() if isinstance(m, norms) and m.running_mean is mean)
        return next(own, None) if mean is not None else None

    @contextmanager
    def factories(self) -> Iterator[None]:
        """While tracing: as they are."""
        yield

    def create_proxy(self, kind: str, target: Any, args: tuple, kwargs: dict, *rest: Any, **more: Any) -> Any:
        """Record a call; attention and einsum are opened instead.

        Raises:
            CaptureError: a function that is given weights, which the sized tracer opens.
        """
        if kind == "placeholder" and target in self.constants:
            args = ()  # a default of any class, which no graph could hold
        if kind == "call_function" and takes_weights(target, args, kwargs):
            raise CaptureError(f"{target.__name__} is given weights; only a tracer that knows sizes can open it")
        if kind == "call_function" and target is F.scaled_dot_product_attention:
            return dot_product_attention(*args, **kwargs)
        if kind == "call_function" and target is F.batch_norm and (path := self._norm(args, kwargs)) is not None:
            self.opened_norms.add(path)
            return self.create_proxy("call_module", path, args[:1] or (kwargs["input"],), {})
        if kind == "call_function" and target is torch.einsum and is_matrix_product(*args):
            return matrix_product(*args)
        return super().create_proxy(kind, target, args, kwargs, *rest, **more)


class SizedProxy(fx.Proxy):
    """A proxy that knows the shape, type and length of its value."""

    @property
    def value(self) -> Any:
        """The value, as tensors without data."""
        return self.node.meta["val"]

    def __getattr__(self, name: str) -> Any:
        """Attributes that are numbers are numbers; `shape` is a tuple of numbers, and proxies for the batch."""
        if isinstance(self.value, Tensor):
            if name == "shape":
                return tuple(self.size(i) for i in range(self.value.ndim))
            if name in ("ndim", "dtype", "requires_grad", "is_cuda", "layout"):
                return getattr(self.value, name)
            if name in ("T", "mT", "data", "device"):
                return self.tracer.create_proxy("call_function", getattr, (self, name), {})
        elif isinstance(found := getattr(self.value, name, None), NUMBERS):  # x.device.type
            return found
        return super().__getattr__(name)

    def __len__(self) -> int:
        """Length of a tensor or tuple."""
        return len(self.value if isinstance(self.value, Tensor) else self._decided())

    def __iter__(self) -> Iterator[Any]:
        """Elements of a tensor or tuple."""
        elements = [
            self.tracer.create_proxy("call_function", operator.getitem, (self, i), {}) for i in range(len(self))
        ]
        return iter(elements)

    def __bool__(self) -> bool:
        """A condition on sizes, decided by the example."""
        if isinstance(self.value, Tensor):
            raise fx.proxy.TraceError("a branch on the values of a tensor")
        return bool(self._decided())

    def _decided(self) -> Any:
        cast(SizedTracer, self.tracer).decided(self.node)
        return self.value

    def _number(self) -> Any:
        if not isinstance(self.value, int | float) or of_batch(self.value):
            raise fx.proxy.TraceError("a number that depends on the batch, or on the values of a tensor")
        return self._decided()

    def __index__(self) -> int:
        """A number that Python needs, decided by the example, as in the next two."""
        return operator.index(self._number())

    def __int__(self) -> int:
        return int(self._number())

    def __float__(self) -> float:
        return float(self._number())

    def __hash__(self) -> int:
        return hash(self._decided()) if isinstance(self.value, str) else super().__hash__()

    def __setitem__(self, index: Any, value: Any) -> None:
        """Writing into a part of a tensor, in the order of the code."""
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})


class SizedTracer(Tracer):
    """Traces with sizes.

    Args:
        leaf_modules: classes to keep whole.
        inputs: examples by name of argument.
        constants: values of arguments that are none of the graph.
        shapes: what is known from another trace of the model.
    """

    def __init__(
        self,
        leaf_modules: tuple[type[nn.Module], ...],
        inputs: Mapping[str, Any],
        constants: Mapping[str, Any],
        shapes: Shapes | None = None,
    ) -> None:
        super().__init__(leaf_modules, inputs, constants)
        self.shapes = shapes or Shapes()
        self.mode = self.shapes.mode
        with self.mode:
            self.inputs = map_examples(
                lambda x: x.new_empty((BATCH, *x.shape[1:])), dict(inputs), other=lambda x: x.new_empty(x.shape)
            )
        self.running = False  # an operator computes its value: nothing is recorded

    def proxy(self, node: fx.Node) -> SizedProxy:
        """A proxy that knows its value."""
        return SizedProxy(node, self)

    @contextmanager
    def factories(self) -> Iterator[None]:
        """Let `torch.zeros(n, ...)` and the like take sizes that are proxies."""

        def recording(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                leaves = pytree.tree_leaves((args, kwargs))
                if any(isinstance(leaf, fx.Proxy) for leaf in leaves):
                    return self.create_proxy("call_function", function, args, kwargs)
                return function(*args, **kwargs)

            return call

        own = {name: getattr(torch, name) for name in FACTORIES}
        try:
            for name, function in own.items():
                setattr(torch, name, recording(function))
            yield
        finally:
            for name, function in own.items():
                setattr(torch, name, function)

    def decided(self, *nodes: fx.Node) -> None:
        """Note the inputs that are no tensors, and from which a constant of the graph was computed."""
        for node in nodes:
            if node in self.plain:
                asked, value = self.plain[node]
                self.facts[asked] = value
            elif not isinstance(node.meta.get("val"), Tensor):
                self.decided(*node.all_input_nodes)

    def entry(self, container: fx.Proxy, path: tuple[Any, ...], example: Any) -> fx.Proxy:
        """A proxy of a container's entry."""
        proxy = super().entry(container, path, example)
        self._value(proxy.node)
        return proxy

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
        """Record the call of a leaf, or trace through."""
        return forward(*args, **kwargs) if self.running else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Record the reading of a parameter."""
        return attr_val if self.running else super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_proxy(self, kind: str, target: Any, args: tuple, kwargs: dict, *rest: Any, **more: Any) -> Any:
        """Record a call and run it; what comes out as a number is a number, and no part of the graph."""
        if kind == "call_function" and takes_weights(target, args, kwargs):
            return target(*args, **kwargs)
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **more)
        if not isinstance(proxy, SizedProxy) or "val" in proxy.node.meta:
            return proxy
        value = self._value(proxy.node)
        if kind in ("call_function", "call_method") and isinstance(value, NUMBERS) and not of_batch(value):
            self.decided(*proxy.node.all_input_nodes)
            self.graph.erase_node(proxy.node)
            return value
        return proxy

    def _value(self, node: fx.Node) -> Any:
        if "val" not in node.meta:
            before, self.running = self.running, True
            try:
                with torch.no_grad():
                    node.meta["val"] = self._run(node)
            except DataDependentOutputException as error:
                raise fx.proxy.TraceError(f"{node.target} needs the values of a tensor") from error
            finally:
                self.running = before
        return node.meta["val"]

    def _run(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return self.inputs.get(str(node.target).lstrip("*"))
        if node.op == "get_attr":
            return self.mode.from_tensor(operator.attrgetter(str(node.target))(self.root))
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self._value)
        with self.mode:
            if node.op == "call_method":
                return self.shapes.run(str(node.target), args, kwargs, methodcaller(str(node.target)))
            called: Any = self.root.get_submodule(str(node.target)) if node.op == "call_module" else node.target
            return self.shapes.run(called, args, kwargs, called)


def of_batch(value: Any) -> bool:
    """Whether a number depends on the length of the batch."""
    return isinstance(value, int) and value != 0 and value % BATCH == 0


def takes_weights(target: Any, args: tuple, kwargs: Mapping[str, Any]) -> bool:
    """Whether a call is one of a Python function outside torch, to which weights are passed."""
    if not isinstance(target, FunctionType) or str(target.__module__).partition(".")[0] == "torch":
        return False
    leaves = pytree.tree_leaves((args, dict(kwargs)))
    nodes = (leaf.node if isinstance(leaf, fx.Proxy) else leaf for leaf in leaves)
    return any(isinstance(n, fx.Node) and n.op == "get_attr" for n in nodes)
