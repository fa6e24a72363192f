"""A model's forward as torch.fx graphs, one for training and one for evaluation.

torch.fx bakes `self.training` into the graph (functional dropout, stochastic depth, auxiliary heads), so one trace
serves one mode. The model is traced in both; where the graphs are equal, one is kept. Sizes stay values of the graph
where the model allows it (tracer.py).
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from qat.errors import CaptureError
from qat.inputs import SETTINGS
from qat.placement.fake import Shapes
from qat.placement.fixed import FixedArguments
from qat.placement.patterns import is_pure
from qat.placement.tracer import SizedTracer, Tracer
from qat.placement.written import is_written_into, read_what_was_written

OWN_FOLDERS = tuple(str(Path(inspect.getfile(m)).parent) for m in (torch, inspect.getmodule(CaptureError)) if m)


CONSTANT = "constant_of_forward_"  # names of buffers


@dataclass(frozen=True)
class Capture:
    """A model's two graphs; both call the modules of `root` by their original names."""

    root: nn.Module
    train: fx.Graph
    eval: fx.Graph
    fixed: FixedArguments  # which are not in the graphs
    sized: bool = False  # sizes are those of the example, but for the batch
    norms: frozenset[str] = frozenset()  # paths that the graphs call as plain BatchNorms, whatever their class does

    @property
    def modes_agree(self) -> bool:
        """Whether one graph serves both modes."""
        return self.train is self.eval


def capture(
    model: nn.Module,
    example_inputs: tuple[Any, ...],
    example_kwargs: Mapping[str, Any],
    leaf_modules: tuple[type[nn.Module], ...] = (),
) -> Capture:
    """Trace `model` in train and in eval mode; it is left in the mode it was in.

    Args:
        model: any `nn.Module` without data-dependent control flow.
        example_inputs: positional inputs, as for a forward call.
        example_kwargs: keyword inputs. Arguments named by neither keep their default value; a bool, string or None
            is a setting that forward branches on, so it is fixed at that value, and no argument any more.
        leaf_modules: module classes to keep whole, in float.

    Raises:
        CaptureError: naming file and line where tracing failed.
    """
    fixed = _fixed_arguments(model, example_inputs, example_kwargs)
    inputs = inspect.signature(model.forward).bind(*example_inputs, **example_kwargs).arguments
    with suppress(CaptureError):
        return _capture(model, fixed, lambda: Tracer(leaf_modules, inputs, fixed.values))
    shapes = Shapes()
    return _capture(model, fixed, lambda: SizedTracer(leaf_modules, inputs, fixed.values, shapes))


def _capture(model: nn.Module, fixed: FixedArguments, tracer: Callable[[], Tracer]) -> Capture:
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]  # forward counts batches while it is traced
    modes = {name: module.training for name, module in model.named_modules()}
    try:
        model.train()
        train = _trace(model, train_tracer := tracer())
        model.eval()
        evaluation = _trace(model, eval_tracer := tracer())
    finally:
        for buffer, before in buffers:
            buffer.copy_(before)
        for name, module in model.named_modules():
            module.training = modes[name]
    same = _signature(train) == _signature(evaluation)
    return Capture(
        root=model,
        train=evaluation if same else train,
        eval=evaluation,
        sized=isinstance(eval_tracer, SizedTracer),
        fixed=replace(
            fixed,
            values={name: x for name, x in fixed.values.items() if name != fixed.spread},
            facts={True: train_tracer.facts, False: eval_tracer.facts},
            spread_is_read=fixed.spread is not None and fixed.spread not in fixed.values,
        ),
        norms=frozenset(train_tracer.opened_norms | eval_tracer.opened_norms),
    )


def _fixed_arguments(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> FixedArguments:
    signature = inspect.signature(model.forward)
    try:
        given = signature.bind(*args, **kwargs).arguments
    except TypeError as error:
        raise CaptureError(
            f"{type(model).__name__}.forward{signature} cannot be called with {len(args)} positional inputs and "
            f"keywords {sorted(kwargs)}: {error}. Pass example_inputs as forward takes them"
        ) from None
    by_kind: dict[Any, list[str]] = {kind: [] for kind in inspect._ParameterKind}
    for name, parameter in signature.parameters.items():
        by_kind[parameter.kind].append(name)
    loose, spread = by_kind[inspect.Parameter.VAR_POSITIONAL], by_kind[inspect.Parameter.VAR_KEYWORD]
    if loose and loose[0] in given:
        raise CaptureError(
            f"{type(model).__name__}.forward takes any number of inputs as *{loose[0]}, and a graph has a number: "
            "wrap the model in a module whose forward names them, or use placement=modules"
        )
    values = {
        name: parameter.default
        for name, parameter in signature.parameters.items()
        if name not in given and parameter.default is not inspect.Parameter.empty
    }
    values |= {name: value for name, value in given.items() if isinstance(value, SETTINGS)}
    values |= dict.fromkeys(loose, ()) | {name: {} for name in spread if name not in given}
    return FixedArguments(
        names=(*by_kind[inspect.Parameter.POSITIONAL_ONLY], *by_kind[inspect.Parameter.POSITIONAL_OR_KEYWORD]),
        keywords=tuple(by_kind[inspect.Parameter.KEYWORD_ONLY]),
        values=values,
        spread=spread[0] if spread else None,
    )


def _trace(model: nn.Module, tracer: Tracer) -> fx.Graph:
    try:
        with tracer.factories():
            graph = tracer.trace(model)
    except CaptureError:
        raise
    except Exception as error:
        raise CaptureError(_where(model, error)) from error
    _drop_identities(graph, model)
    _keep_tensors(graph, model)
    modules = dict(model.named_modules())
    _by_position(graph, modules)
    read_what_was_written(graph, modules)
    _merge_equal_calls(graph, modules)
    return graph


def _drop_identities(graph: fx.Graph, root: nn.Module) -> None:
    """`nn.Identity` stands where an option is off: between a BatchNorm and its activation, say."""
    for node in list(graph.nodes):
        if node.op == "call_module" and type(root.get_submodule(str(node.target))) is nn.Identity:
            node.replace_all_uses_with(node.all_input_nodes[0])
            graph.erase_node(node)


def _keep_tensors(graph: fx.Graph, root: nn.Module) -> None:
    """Tensors that forward made of nothing, which fx left as attributes, become buffers; equal ones the same."""
    for node in graph.nodes:
        value = root.__dict__.get(str(node.target)) if node.op == "get_attr" else None
        if not isinstance(value, Tensor):
            continue
        kept = (name for name, b in root._buffers.items() if name.startswith(CONSTANT) and _same(b, value))
        name = next(kept, f"{CONSTANT}{sum(n.startswith(CONSTANT) for n in root._buffers)}")
        if name not in root._buffers:
            root.register_buffer(name, value, persistent=False)
        node.target = name
    for name in [n for n, value in root.__dict__.items() if n.startswith("_tensor_constant")]:
        delattr(root, name)


def _same(a: Tensor | None, b: Tensor) -> bool:
    return a is not None and a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


def _by_position(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> None:
    """`self.conv(input=x)` as `self.conv(x)`: torch's layers of one input."""
    for node in graph.nodes:
        if node.op != "call_module" or node.args or set(node.kwargs) != {"input"}:
            continue
        if type(modules[str(node.target)]).__module__.startswith("torch.nn."):
            node.args, node.kwargs = (node.kwargs["input"],), {}


def _merge_equal_calls(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> None:
    """One call where the same activation or pooling is called twice on one value: one quantizer, and one in the file.

    Exporters merge operators that compute the same, and sites would lose count.
    """
    first: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        if not is_pure(node, modules) or is_written_into(node, modules):
            continue
        called: Any = node.target
        if node.op == "call_module":
            module = modules[str(node.target)]
            called = type(module), repr({k: v for k, v in vars(module).items() if not k.startswith("_")})
        key = (node.op, called, repr((node.args, node.kwargs)))
        if key in first:
            node.replace_all_uses_with(first[key])
            graph.erase_node(node)
        else:
            first[key] = node


def _where(model: nn.Module, error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not f.filename.startswith(OWN_FOLDERS) and not f.filename.startswith("<")]
    spot = f"{own[-1].filename}:{own[-1].lineno}: {own[-1].line}" if own else "inside torch.fx"
    return (
        f"{type(model).__name__} cannot be traced at {spot}\n"
        f"  torch.fx says: {error}\n"
        "  Rule: forward may branch on settings and sizes, not on the values of tensors.\n"
        "  Way out: rewrite the line without the branch, use placement=modules (layers alone, without a graph), or "
        "keep its module whole and in float with leaf_modules=(TheClass,)"
    )


def _signature(graph: fx.Graph) -> list[Any]:
    """The graph as plain values, so that two traces compare by structure."""
    index = {node: i for i, node in enumerate(graph.nodes)}

    def plain(argument: Any) -> Any:
        mapped = fx.node.map_arg(argument, lambda node: f"%{index[node]}")
        return repr(mapped)

    return [(node.op, str(node.target), plain(node.args), plain(node.kwargs)) for node in graph.nodes]
