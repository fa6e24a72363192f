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
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from qat.errors import CaptureError
from qat.layers.attention import dot_product_attention
from qat.layers.einsum import is_matrix_product, matrix_product
from qat.layers.frozen import FrozenNorm2d
from qat.placement.fake import Shapes, methodcaller

WHOLE = frozenset({"StochasticDepth", "DropPath"})  # drop residual branches in training; nothing in evaluation
FACTORIES = ("zeros", "ones", "empty", "full", "arange", "rand", "randn")  # torch.*: take sizes, but no tensor
BATCH = 10007  # examples; a prime: sizes and counts that depend on the batch are its multiples, and stay in the graph
OPENED = (dict, OrderedDict, list, tuple)  # exactly these: others may have attributes and methods of their own
NUMBERS = (bool, int, float, str, torch.dtype, torch.layout)


class Tracer(fx.Tracer):
    """Symbolic: nothing is computed.

    Args:
        leaf_modules: classes to keep whole.
        inputs: examples by name of placeholder; forward sees a dict, list or tuple as one, with proxies in it.
    """

    def __init__(self, leaf_modules: tuple[type[nn.Module], ...], inputs: Mapping[str, Any]) -> None:
        super().__init__()
        self.leaf_modules, self.examples = leaf_modules, inputs
        self.opened_inputs: list[fx.Node] = []  # entries of dicts, lists and tuples, read or not
        self.settings: dict[tuple[Any, ...], Any] = {}  # entries that the graph has at one value; by argument and keys
        self.opened_norms: set[str] = set()  # paths of BatchNorms with a forward of their own, recorded as plain ones
        self.names: dict[int, str] = {}  # of parameters and buffers, by identity

    def trace(self, root: nn.Module, concrete_args: dict[str, Any] | None = None) -> fx.Graph:  # type: ignore[override]
        """The graph of `root`'s forward."""
        self.names = {id(x): name for name, x in [*root.named_buffers(), *root.named_parameters()]}
        graph = super().trace(root, concrete_args)
        for entry in reversed(self.opened_inputs):
            if not entry.users:
                graph.erase_node(entry)
        return graph

    def create_args_for_root(self, *args: Any, **kwargs: Any) -> Any:
        """Forward and its arguments: proxies, and containers of proxies."""
        forward, proxies = super().create_args_for_root(*args, **kwargs)
        return forward, [self._opened_input(p) if isinstance(p, fx.Proxy) else p for p in proxies]

    def _opened_input(self, proxy: fx.Proxy) -> Any:
        name = str(proxy.node.target)
        return self._opened(proxy, self.examples.get(name), (name,))

    def _opened(self, value: Any, example: Any, path: tuple[Any, ...]) -> Any:
        """A container like `example`, whose entries are read from `value`; a bool or None in it is fixed."""
        if type(example) not in OPENED:
            return value

        def entry(key: Any, like: Any) -> Any:
            read = like if like is None or isinstance(like, bool) else value[key]
            if isinstance(read, fx.Proxy):
                self.opened_inputs.append(read.node)
                return self._opened(read, like, (*path, key))
            self.settings[*path, key] = read
            return read

        if isinstance(example, dict):
            return type(example)((key, entry(key, like)) for key, like in example.items())
        return type(example)(entry(i, like) for i, like in enumerate(example))

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
        return len(self.value)

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
        return bool(self.value)

    def __setitem__(self, index: Any, value: Any) -> None:
        """Writing into a part of a tensor, in the order of the code."""
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})


class SizedTracer(Tracer):
    """Traces with sizes.

    Args:
        leaf_modules: classes to keep whole.
        constants: arguments that are fixed at a value, for which fx numbers the placeholders.
        inputs: by name of placeholder; those whose first dimension is as long as the first tensor's have a batch.
        shapes: what is known from another trace of the model.
    """

    def __init__(
        self,
        leaf_modules: tuple[type[nn.Module], ...],
        inputs: Mapping[str, Any],
        constants: Mapping[str, Any] | None = None,
        shapes: Shapes | None = None,
    ) -> None:
        super().__init__(leaf_modules, inputs)
        self.constants = dict(constants or {})
        self.shapes = shapes or Shapes()
        self.mode = self.shapes.mode
        batch = next((len(x) for x in pytree.tree_leaves(dict(inputs)) if isinstance(x, Tensor) and x.ndim), None)
        self.inputs = pytree.tree_map_only(Tensor, lambda x: self._fake(x, batch), dict(inputs))
        self.running = False  # an operator computes its value: nothing is recorded

    def _fake(self, value: Tensor, batch: int | None) -> Tensor:
        has_batch = value.ndim > 0 and len(value) == batch
        with self.mode:
            return value.new_empty((BATCH, *value.shape[1:]) if has_batch else value.shape)

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
            name = str(node.target)
            fixed = (value for key, value in self.constants.items() if name.startswith(f"{key}_"))
            return self.inputs[name] if name in self.inputs else next(fixed, None)
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
