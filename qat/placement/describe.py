"""Writes the plan: one line per operator of the evaluation graph, with the reason for what stays in float."""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx, nn

from qat.functional.ste import IDENTITY, RELU, RELU6, Clamp
from qat.placement.capture import Capture
from qat.placement.overrides import Choices
from qat.placement.patterns import Role, function_name, is_tensor, module_of
from qat.placement.plan import Plan, PlannedOp
from qat.placement.shapes import macs_per_example
from qat.placement.sites import STAYS, Sites
from qat.recipe import QuantRecipe
from qat.target import Target

FIXED_SIZE = (
    "forward branches on sizes: the model serves images of the size that it was prepared with, at any batch size"
)
CLAMPS = {RELU: "relu", RELU6: "relu6"}


def describe(
    model: str,
    captured: Capture,
    modules: Mapping[str, nn.Module],
    sites: Sites,
    excluded: Mapping[str, str],
    recipe: QuantRecipe,
    target: Target,
    choices: Choices,
) -> Plan:
    """The plan of the evaluation graph, before its layers are swapped."""
    fused = sites.fused
    ops = []
    for node in captured.eval.nodes:
        if node in fused or node.op == "output":
            continue
        if node.op in ("placeholder", "get_attr"):
            if node in sites.points:
                kind = "input" if node.op == "placeholder" else "parameter"
                name = sites.names[node]
                output = choices.of_activation(name).spec.short
                ops.append(PlannedOp(name=name, kind=kind, integer=True, output=output))
            continue
        if is_tensor(node) or node.meta.get("macs"):  # recurrent layers and attention return more than tensors
            ops.append(_operator(node, modules, sites, excluded, choices))
    notes = (*choices.notes, *((FIXED_SIZE,) if captured.sized else ()))
    spelled = (("weights", str(choices.weight.spec)), ("activations", str(choices.activation.spec)))
    return Plan(model=model, recipe=recipe.name, target=target.name, ops=tuple(ops), grids=spelled, notes=notes)


def _operator(
    node: fx.Node, modules: Mapping[str, nn.Module], sites: Sites, excluded: Mapping[str, str], choices: Choices
) -> PlannedOp:
    name, role, module = sites.names[node], sites.roles[node], module_of(node, modules)
    tail = sites.tails.get(node)
    last = tail.last(node) if tail else node
    point = sites.points.get(last)
    integer = tail is not None or (role in STAYS and node in sites.on_grid)
    parts = []
    if tail and tail.norm is not None:
        parts.append(f"batchnorm {sites.names[tail.norm]}")
    if tail and tail.clamp is not None and point is not None:
        parts.append(clamp_name(point))
    if tail and tail.curve is not None:
        parts.append(f"{kind_of(tail.curve, module_of(tail.curve, modules))} {sites.names[tail.curve]}")
    return PlannedOp(
        name=name,
        kind=kind_of(node, module),
        integer=integer,
        fused=tuple(parts),
        weight=choices.of_weight(name).spec.short if integer and role is Role.WEIGHTED else None,
        output=choices.of_activation(name).spec.short if point is not None else "float" if tail else None,
        why="" if integer else _reason(name, role, excluded),
        macs=macs_per_example(node, module),
    )


def clamp_name(clamp: Clamp) -> str:
    """What the plan calls a clamping activation."""
    return CLAMPS.get(clamp, "identity" if clamp == IDENTITY else f"hardtanh[{clamp.low:g},{clamp.high:g}]")


def kind_of(node: fx.Node, module: nn.Module | None) -> str:
    """`conv2d 3->32 k3 s2 g1` for a convolution, else the class or function name in lower case."""
    if isinstance(module, nn.modules.conv._ConvNd):
        size = "x".join(map(str, dict.fromkeys(module.kernel_size)))
        text = f"{type(module).__name__.lower()} {module.in_channels}->{module.out_channels} k{size}"
        text += f" s{'x'.join(map(str, dict.fromkeys(module.stride)))}" if set(module.stride) != {1} else ""
        return text + (f" g{module.groups}" if module.groups != 1 else "")
    if isinstance(module, nn.Linear):
        return f"linear {module.in_features}->{module.out_features}"
    if module is not None:
        return type(module).__name__.lower()
    return function_name(node)


def _reason(name: str, role: Role, excluded: Mapping[str, str]) -> str:
    if name in excluded:
        return f"excluded by {excluded[name]!r}"
    return {
        Role.FLOAT: "no integer kernel is known for it",
        Role.NORM: "no convolution before it to fold into",
        Role.CLAMP: "its input is in float",
        Role.MOVE: "its input is in float",
        Role.SCALE: "its input is in float",
        Role.IDENTITY: "its input is in float",
    }.get(role, "its input is no float tensor")
