"""Weight-only quantization: weights of 2 to 8 bits in the file, activations in float.

Smaller files at the speed of float: the runtime makes floats of the integers when it loads them. 4 bits and fewer are
stored two to a byte. No calibration and no training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from qat.errors import ConfigError, PlacementError
from qat.layers import pruned
from qat.layers.stored import storable, with_stored
from qat.layers.transformer import open_attention
from qat.placement.layers import called_layers, replaced, require_able, require_float, weight_choices, weight_integers
from qat.placement.plan import Plan, PlannedOp
from qat.placement.rules import excluded
from qat.recipe import QuantRecipe
from qat.target import Target

PACKED_BITS, PACKED_OPSET = 4, 21  # the first opset with INT4


@torch.no_grad()
def quantize_weights(
    model: nn.Module,
    example_inputs: Tensor | tuple[Any, ...],
    recipe: str | Mapping[str, Any] | QuantRecipe = "w8a8",
    target: str | Mapping[str, Any] | Target = "onnxruntime",
    *,
    bits: int | None = None,
    exclude: Sequence[str] = (),
) -> nn.Module:
    """A copy of `model` whose weights are integers; it computes in float with what they say.

    Weights of linear layers, convolutions, embeddings, attention and recurrent layers, one scale per output channel.

    Args:
        model: a float model.
        example_inputs: one input tensor, or the tuple of positional inputs; only shapes and dtypes matter.
        recipe: of the weights; what it says of activations has no part in this.
        target: where the model will run: onnxruntime, or torch.
        bits: of the weights, instead of the recipe's: 8, or 4 for half the size.
        exclude: glob patterns of layers that stay in float, besides the recipe's.

    Raises:
        ConfigError: an unknown recipe or target, a target that runs no such model or cannot store the bits.
        PlacementError: no layer with weights, a pattern that matches none, a prepared model.
        CaptureError: the model rejects the inputs.
        NumericsError: NaN or Inf in a parameter or buffer.
    """
    recipe, target = QuantRecipe.parse(recipe), Target.parse(target)
    if bits is not None:
        recipe = _with_bits(recipe, bits)
    require_able(target, "weight-only quantization")
    require_packing(recipe, target)
    require_float(model)
    root = open_attention(pruned.copied(model, masks=False).cpu().eval())
    calls, examples = called_layers(root, example_inputs)
    left = excluded((*recipe.exclude, *exclude), [call.name for call in calls])
    chosen = [call for call in calls if call.name not in left]
    if not chosen:
        raise PlacementError(
            f"no weights to store as integers in {type(model).__name__}: forward calls no layer with a matrix, or all "
            "are excluded"
        )
    choices, notes = weight_choices(recipe, target, [c.name for c in chosen], widest=8)
    swap = {}
    for call in chosen:
        choice = choices[call.name]
        weights = {n: weight_integers(cast(Tensor, getattr(call.module, n)), choice) for n in storable(call.module)}
        ends = (choice.spec.qmin, choice.spec.qmax)
        swap[call.module] = with_stored(call.module, {n: (*integers, *ends) for n, integers in weights.items()})
    name = f"w{recipe.weight.bits} weight-only"
    ops = [
        PlannedOp(name=c.name, kind=c.kind, integer=False, macs=c.macs, weight=choices[c.name].spec.short,
                  why="its weight is read as floats")
        if c.name in choices
        else PlannedOp(name=c.name, kind=c.kind, integer=False, macs=c.macs, why=f"excluded by {left[c.name]!r}")
        for c in calls
    ]  # fmt: skip
    plan = Plan(model=type(model).__name__, recipe=name, target=target.name, ops=tuple(ops), notes=notes)
    stored = replaced(root, swap).requires_grad_(False)
    about = {"example_inputs": examples, "recipe": name, "target": target, "model": plan.model, "plan": plan}
    stored.__dict__["meta"] = {"prepared": {**about, "stored": True}}
    return stored


def _with_bits(recipe: QuantRecipe, bits: int) -> QuantRecipe:
    data = {key: getattr(recipe, key) for key in recipe.__dataclass_fields__}
    return QuantRecipe(**{**data, "weight": recipe.weight.changed({"bits": bits}, "weight"), "first_last_bits": None})


def require_packing(recipe: QuantRecipe, target: Target) -> None:
    """Raise `ConfigError` where the target would store 4 bits in 8."""
    narrow = recipe.weight.bits <= PACKED_BITS
    if narrow and (target.runtime != "onnxruntime" or target.opset < PACKED_OPSET):
        raise ConfigError(
            f"weights of {recipe.weight.bits} bits are packed as INT4, which ONNX has from opset {PACKED_OPSET} on and "
            f"target {target.name} (runtime {target.runtime}, opset {target.opset}) lacks: use target=onnxruntime, or "
            "quant.weight.bits=8"
        )
