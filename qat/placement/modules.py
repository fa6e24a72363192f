"""Placement without a graph: every convolution and linear layer quantizes its own weight and input, the rest is float.

For models that cannot be traced. Fewer operators run on integers than with a graph: BatchNorm, activations and
additions between the layers stay in float, as does every layer's output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map_only

from qat.errors import CaptureError, PlacementError
from qat.inputs import anew
from qat.layers import FakeQuantWeight, pruned
from qat.layers.standalone import stand_alone
from qat.layers.transformer import open_attention
from qat.placement.macs import macs_of_calls
from qat.placement.patterns import WEIGHTED
from qat.placement.plan import Plan, PlannedOp
from qat.placement.prepared import PreparedModel, device_of
from qat.placement.rewrite import SWAPS, build_quantizer
from qat.placement.rules import excluded
from qat.recipe import Numerics, QuantRecipe
from qat.target import Target

FLOAT = "placement=modules quantizes convolutions and linear layers alone"
FORWARD = "forward"  # name of what the model's own forward multiplies


class PreparedModules(PreparedModel):
    """A prepared model that runs its own forward, whatever that does, with fake-quant layers in it."""

    def __init__(self, root: nn.Module, **about: Any) -> None:
        self._root = (root,)  # a tuple, so that it is no submodule: both share their parameters, buffers and modules
        super().__init__(root, {True: fx.Graph(), False: fx.Graph()}, **about)

    def __setattr__(self, name: str, value: Any) -> None:
        """`_root` comes before `nn.Module.__init__`."""
        if name == "_root":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def _compile(self) -> None:
        """No graph, no code."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the float model's forward."""
        self._root[0].training = self.training
        return self._root[0](*args, **kwargs)


def prepare_modules(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    recipe: QuantRecipe,
    target: Target,
    grids: Numerics,
    exclude: tuple[str, ...],
) -> PreparedModules:
    """A copy of `model` whose convolutions and linear layers are swapped for ones that stand alone.

    Args:
        model: any module.
        args: positional example inputs.
        kwargs: keyword example inputs.
        recipe: of weights and inputs.
        target: for the plan.
        grids: of the recipe on that target.
        exclude: patterns of layers that stay in float.

    Raises:
        CaptureError: the model rejects the inputs.
        PlacementError: no such layer, or a pattern that matches none.
    """
    root = open_attention(pruned.copied(model))
    macs = _macs_of_calls(root, args, kwargs)
    inner = {name: m for name, m in root.named_modules() if name}
    names = {name: m for name, m in inner.items() if macs.get(name) or not any(True for _ in m.children())}
    left = excluded(exclude, list(names))
    swap = layer_swap(recipe, grids)
    ops, swapped = [], {}
    if macs.get(""):
        kind = type(model).__name__.lower()
        ops.append(PlannedOp(name=FORWARD, kind=kind, integer=False, why=FLOAT, macs=macs[""]))
    for name, module in names.items():
        kind = type(module).__name__.lower().removeprefix("open")
        if not _is_weighted(module):
            ops.append(PlannedOp(name=name, kind=kind, integer=False, why=FLOAT, macs=macs.get(name, 0)))
        elif name in left or name not in macs:
            why = f"excluded by {left[name]!r}" if name in left else "the example inputs do not reach it"
            ops.append(PlannedOp(name=name, kind=kind, integer=False, why=why, macs=macs.get(name, 0)))
        else:
            if module not in swapped:
                swapped[module] = swap(module)
            root.set_submodule(name, swapped[module])
            weight, why = grids.weight.short, "its output is in float"
            ops.append(PlannedOp(name=name, kind=kind, integer=True, weight=weight, macs=macs[name], why=why))
    if not swapped:
        raise PlacementError(
            f"nothing to quantize in {type(model).__name__}: it calls no convolution and no linear layer, or all are "
            "excluded"
        )
    pruned.hand_back(root)
    plan = Plan(
        model=type(model).__name__,
        recipe=recipe.name,
        target=target.name,
        ops=tuple(ops),
        grids=(("weights", str(grids.weight)), ("inputs of layers", str(grids.activation))),
        notes=(
            *grids.notes,
            "placement=modules: each layer on its own, everything between them in float",
            *pruned.notes(root),
        ),
    )
    examples = tree_map_only(Tensor, Tensor.cpu, (*args, *kwargs.values()))
    about = {"plan": plan, "recipe": recipe, "target": target, "numerics": grids, "example_inputs": examples}
    return PreparedModules(root, **about)


def _is_weighted(module: nn.Module) -> bool:
    return any(isinstance(module, cls) and type(module).forward is cls.forward for cls in WEIGHTED)


def _macs_of_calls(root: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, int]:
    """Multiply-accumulates of every module that forward calls, without those of the modules inside it."""
    training = root.training
    try:
        with torch.no_grad(), macs_of_calls(root.eval()) as seen:
            root(*anew(args), **anew(dict(kwargs)))
    except Exception as error:
        shapes = tree_map_only(Tensor, lambda x: tuple(x.shape), [*args, *kwargs.values()])
        raise CaptureError(
            f"{type(root).__name__} rejects example inputs of shape {', '.join(map(str, shapes))}: {error}. "
            "Pass example_inputs of a size that the model takes"
        ) from error
    finally:
        root.train(training)
    return seen


def layer_swap(recipe: QuantRecipe, grids: Numerics) -> Callable[[nn.Module], FakeQuantWeight]:
    """Builds the form of a convolution or linear layer that stands alone.

    Raises:
        PlacementError: the recipe has exceptions by operator, which need the graph.
    """
    if recipe.override or recipe.first_last_bits is not None or recipe.sum_bits is not None:
        raise PlacementError(
            f"recipe {recipe.name} gives operators bits of their own, which placement=modules cannot: give it a recipe "
            "with override={} first_last_bits=null sum_bits=null, or placement=graph"
        )

    def swap(layer: nn.Module) -> FakeQuantWeight:
        device, channels = device_of(layer), cast(Tensor, layer.weight).shape[0]
        weight = build_quantizer(recipe.weight, grids.weight, channels=channels).to(device).train(layer.training)
        activation = build_quantizer(recipe.activation, grids.activation).to(device).train(layer.training)
        new = SWAPS[next(cls for cls in SWAPS if isinstance(layer, cls))].from_float(layer, weight)
        stand_alone(new, activation)
        return new

    return swap
