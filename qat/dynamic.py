"""Dynamic quantization: integer weights, and activation ranges that are taken when the model runs.

No calibration and no training: linear, attention and recurrent layers are swapped for integer ones, everything else
stays in float. The right tool where products with weights take most of the time and ranges move from input to input:
transformers and recurrent networks. Convolutions are better served by static ranges (`qat.prepare`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from qat.errors import PlacementError
from qat.layers import pruned
from qat.layers.attention import OpenAttention
from qat.layers.dynamic import DynamicLinear, DynamicProduct
from qat.layers.dynamic_attention import DynamicAttention
from qat.layers.dynamic_recurrent import matrices, recurrent_form
from qat.layers.stored import storable
from qat.layers.transformer import open_attention
from qat.placement.layers import (
    Called,
    called_layers,
    replaced,
    require_able,
    require_float,
    weight_choices,
    weight_integers,
)
from qat.placement.overrides import Choice
from qat.placement.plan import Plan, PlannedOp
from qat.placement.rules import excluded
from qat.recipe import QuantRecipe
from qat.target import Target

ACTIVATIONS = "uint8[0,255] affine, of each batch as a whole, taken when the model runs"
COUPLED = "one range serves a whole batch: what an example gets depends on the others in it"
IN_FLOAT = "dynamic quantization is for linear, attention and recurrent layers"


@torch.no_grad()
def quantize_dynamic(
    model: nn.Module,
    example_inputs: Tensor | tuple[Any, ...],
    recipe: str | Mapping[str, Any] | QuantRecipe = "w8a8",
    target: str | Mapping[str, Any] | Target = "onnxruntime",
    *,
    exclude: Sequence[str] = (),
) -> nn.Module:
    """A copy of `model` with integer weights that quantizes activations when it runs; for `qat.export` and inference.

    In torch it computes what onnxruntime computes, bit for bit in its integers. One range serves all examples of a
    batch, so that a result depends on the company it is computed in.

    Args:
        model: a float model; calls of `torch.nn.functional.linear` in its forward stay in float.
        example_inputs: one input tensor, or the tuple of positional inputs; only shapes and dtypes matter.
        recipe: of the weights; what it says of activations has no part in this.
        target: where the model will run: onnxruntime, or torch.
        exclude: glob patterns of layers that stay in float, besides the recipe's.

    Raises:
        ConfigError: an unknown recipe or target, or a target that runs no such model.
        PlacementError: no such layer, a pattern that matches none, a prepared model.
        CaptureError: the model rejects the inputs.
        NumericsError: NaN or Inf in a parameter or buffer.
    """
    recipe, target = QuantRecipe.parse(recipe), Target.parse(target)
    require_able(target, "dynamic quantization")
    require_float(model)
    root = open_attention(pruned.copied(model, masks=False).cpu().eval())
    calls, examples = called_layers(root, example_inputs)
    left = excluded((*recipe.exclude, *exclude), [call.name for call in calls])
    able = [call for call in calls if _swappable(call.module)]
    if not able:
        raise PlacementError(
            f"nothing to quantize dynamically in {type(model).__name__}: forward calls no linear, attention or "
            "recurrent layer. Use task=ptq or qat (qat.prepare), which run convolutions on integers"
        )
    chosen = [call for call in able if call.name not in left]
    if not chosen:
        raise PlacementError(f"exclude leaves nothing to quantize in {type(model).__name__}; drop a pattern")
    choices, notes = weight_choices(recipe, target, [c.name for c in chosen], widest=target.weight_bits)
    swap = {call.module: _integer_layer(call.module, choices[call.name]) for call in chosen}
    name = f"w{recipe.weight.bits} dynamic"
    plan = Plan(
        model=type(model).__name__,
        recipe=name,
        target=target.name,
        ops=tuple(_planned(call, choices, left) for call in calls),
        grids=(("activations", ACTIVATIONS),),
        notes=(*notes, COUPLED),
    )
    quantized = replaced(root, swap).requires_grad_(False)
    about = {"example_inputs": examples, "recipe": name, "target": target, "model": plan.model, "plan": plan}
    quantized.__dict__["meta"] = {"prepared": about}
    return quantized


def _swappable(layer: nn.Module) -> bool:
    linear = isinstance(layer, nn.Linear) and type(layer).forward is nn.Linear.forward
    return linear or isinstance(layer, OpenAttention) or recurrent_form(layer) is not None


def _integer_layer(layer: nn.Module, choice: Choice) -> nn.Module:
    if isinstance(layer, nn.Linear):
        return DynamicLinear(*weight_integers(layer.weight, choice), layer.bias)
    if isinstance(layer, OpenAttention):
        parameters = {name: cast(Tensor, getattr(layer, name)) for name in storable(layer)}
        products = {name: DynamicProduct(*weight_integers(w, choice)) for name, w in parameters.items()}
        return DynamicAttention.of(layer, products)
    form = recurrent_form(layer)
    assert form is not None
    assert isinstance(layer, nn.RNNBase)
    return form(
        layer, {name: DynamicLinear(*weight_integers(w, choice), bias) for name, (w, bias) in matrices(layer).items()}
    )


def _planned(call: Called, choices: Mapping[str, Choice], left: Mapping[str, str]) -> PlannedOp:
    if call.name in choices:
        weight = choices[call.name].spec.short
        return PlannedOp(
            name=call.name, kind=call.kind, integer=True, weight=weight, output="float", macs=call.macs,
            why="its range is taken when it runs",
        )  # fmt: skip
    why = f"excluded by {left[call.name]!r}" if call.name in left else IN_FLOAT
    return PlannedOp(name=call.name, kind=call.kind, integer=False, why=why, macs=call.macs)
