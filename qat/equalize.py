"""Cross-layer equalization of a float model, before `qat.prepare`: formula in functional/equalization.py.

It evens out channels whose ranges differ by orders of magnitude, so that one scale serves them all: for recipes with
one scale per weight, and for activations. With a scale per output channel there is less to gain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from qat.functional.equalization import by_input, factors, input_range, output_range
from qat.functional.folding import fold_factor
from qat.functional.ste import RELU
from qat.layers import pruned
from qat.placement.capture import capture
from qat.placement.patterns import Role, clamp_of, role_of
from qat.placement.prepared import device_of
from qat.placement.shapes import propagate_shapes, two_examples

ENOUGH = 1e-3  # relative: no factor is farther from 1 than this


@dataclass(frozen=True)
class Pair:
    """Two consecutive layers, with the BatchNorm of the first; by path."""

    first: str
    second: str
    norm: str | None


@torch.no_grad()
def equalize(
    model: nn.Module, example_inputs: Tensor | tuple[Any, ...], *, sweeps: int = 20
) -> tuple[nn.Module, tuple[Pair, ...]]:
    """An equalized copy that computes what `model` does, and the pairs of layers that were equalized.

    A pair is two convolutions or two linear layers, with at most a BatchNorm, a ReLU and dropout between them, each
    read by nothing else and called once. With a BatchNorm between, its weight and bias are scaled, not the layer's.

    Args:
        model: a float model; untouched.
        example_inputs: one input tensor, or the tuple of positional inputs.
        sweeps: at most so many times over all pairs; a layer may stand in two.
    """
    root = pruned.copied(model)
    args = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    args = two_examples(args, device_of(root))
    graph = capture(root, args, {}).eval
    mode = root.training
    root.eval()
    propagate_shapes(root, graph, args, {})
    root.train(mode)
    modules = dict(root.named_modules())
    pairs = tuple(_pairs(graph, modules))
    for _ in range(sweeps):
        changes = [_equalize(modules, pair) for pair in pairs]
        if all(change < ENOUGH for change in changes):
            break
    pruned.hand_back(root)
    return root, pairs


def _pairs(graph: fx.Graph, modules: dict[str, nn.Module]) -> list[Pair]:
    calls: dict[int, int] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            module = id(modules[str(node.target)])
            calls[module] = calls.get(module, 0) + 1

    def once(node: fx.Node) -> bool:
        return node.op == "call_module" and calls[id(modules[str(node.target)])] == 1

    found = []
    for node in graph.nodes:
        if role_of(node, modules) is not Role.WEIGHTED or not once(node):
            continue
        norm, at = None, _only_user(node)
        if at is not None and role_of(at, modules) is Role.NORM and once(at):
            norm, at = at, _only_user(at)
            if modules[str(norm.target)].weight is None:
                continue
        while at is not None and (role_of(at, modules) is Role.IDENTITY or clamp_of_relu(at, modules)):
            at = _only_user(at)
        if at is None or role_of(at, modules) is not Role.WEIGHTED or not once(at):
            continue
        first, second = modules[str(node.target)], modules[str(at.target)]
        if isinstance(first, nn.Linear) is isinstance(second, nn.Linear):
            found.append(Pair(str(node.target), str(at.target), None if norm is None else str(norm.target)))
    return found


def clamp_of_relu(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node is a ReLU: of the clamps, it alone lets factors through."""
    return role_of(node, modules) is Role.CLAMP and clamp_of(node, modules) == RELU


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _equalize(modules: dict[str, nn.Module], pair: Pair) -> float:
    """Scale one pair; returns how far its factors were from 1."""
    first, second = cast(Any, modules[pair.first]), cast(Any, modules[pair.second])
    groups = getattr(second, "groups", 1)
    norm = None if pair.norm is None else cast(Any, modules[pair.norm])
    scaled = first if norm is None else norm
    size = output_range(first.weight)
    if norm is not None:
        size = size * fold_factor(norm.weight, norm.running_var, norm.eps).abs()
    s = factors(size, input_range(second.weight, groups))
    scaled.weight.div_(s.view(-1, *[1] * (scaled.weight.ndim - 1)))
    if scaled.bias is not None:
        scaled.bias.div_(s)
    by_input(second.weight, groups).mul_(s.view(groups, 1, -1, 1))
    return float((s - 1).abs().max())
