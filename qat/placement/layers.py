"""Layers whose weights are quantized once, without a graph: which ones forward calls, and the integers they get.

calls       in the order of forward, from two examples that are run through the model
weight      (observer, bits, granularity) of the recipe -> q, s; first_last_bits and override as everywhere
the rest    of a recipe is about activations and training, and has no part in this
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from qat.errors import CaptureError, ConfigError, PlacementError
from qat.functional.affine import quantize
from qat.functional.ranges import qparams
from qat.inputs import anew
from qat.layers.stored import storable
from qat.placement.macs import EXAMPLES
from qat.placement.overrides import Choice, apply_override
from qat.placement.prepare import require_finite
from qat.placement.prepared import PreparedModel
from qat.placement.shapes import two_examples
from qat.recipe import QuantRecipe, numerics
from qat.target import Target

KINDS = (nn.Linear, nn.modules.conv._ConvNd, nn.Embedding, nn.MultiheadAttention, nn.RNNBase)
RUNTIMES = ("onnxruntime", "torch")  # those that run integer products with dynamic ranges, and stored weights


@dataclass(frozen=True, kw_only=True)
class Called:
    """A layer with weights that forward calls.

    Attributes:
        name: its path; empty for the model itself.
        module: the float layer.
        macs: multiply-accumulates with its weights, for one example.
    """

    name: str
    module: nn.Module
    macs: int

    @property
    def kind(self) -> str:
        """Class of the layer in lower case, as the plan names it."""
        return (
            "linear" if isinstance(self.module, nn.Linear) else type(self.module).__name__.lower().removeprefix("open")
        )


def require_able(target: Target, task: str) -> None:
    """Raise `ConfigError` for a target that does not run such a model."""
    if target.runtime not in RUNTIMES or target.activation_symmetric:
        raise ConfigError(
            f"{task} runs in onnxruntime and torch, and target {target.name} takes static int8 alone: use "
            "target=onnxruntime, or task=ptq for this target"
        )


def require_float(model: nn.Module) -> None:
    """Raise for a model that is prepared already, or not finite."""
    if isinstance(model, PreparedModel):
        raise PlacementError("the model is prepared for static ranges; give the float model")
    require_finite(model)


@torch.no_grad()
def called_layers(root: nn.Module, example_inputs: Tensor | tuple[Any, ...]) -> tuple[list[Called], tuple[Any, ...]]:
    """Layers with weights in the order in which forward first calls them, and two examples on the CPU.

    Raises:
        CaptureError: the model rejects the inputs.
    """
    given = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    first = next((p for p in [*root.parameters(), *root.buffers()]), None)
    args = two_examples(given, first.device if first is not None else "cpu")
    names = {module: name for name, module in root.named_modules()}
    macs: dict[nn.Module, int] = {}

    def meet(module: nn.Module, _inputs: Any) -> None:  # before the layers inside it
        macs.setdefault(module, 0)

    def record(module: nn.Module, inputs: Any, _kwargs: Any, output: Any) -> None:
        macs[module] += _macs(module, inputs, output)

    layers = [m for m in root.modules() if isinstance(m, KINDS)]
    handles = [m.register_forward_pre_hook(meet) for m in layers]
    handles += [m.register_forward_hook(record, with_kwargs=True) for m in layers]
    try:
        root.eval()(*anew(args))
    except Exception as error:
        shapes = ", ".join(map(str, tree_map_only(Tensor, lambda x: tuple(x.shape), list(args))))
        raise CaptureError(
            f"{type(root).__name__} rejects example inputs of shape {shapes}: {error}. "
            "Pass example_inputs of a size that the model takes"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    found = [Called(name=names[module], module=module, macs=count) for module, count in macs.items()]
    return found, tree_map_only(Tensor, Tensor.cpu, args)


def _macs(module: nn.Module, inputs: Any, output: Any) -> int:
    weights = [getattr(module, name) for name in storable(module)]
    if isinstance(module, nn.Embedding):
        return 0
    if isinstance(module, nn.MultiheadAttention | nn.RNNBase):
        if not inputs or not isinstance(inputs[0], Tensor):
            return 0
        positions = math.prod(inputs[0].shape[:-1]) // EXAMPLES  # tokens, steps
        return positions * sum(weight.numel() for weight in weights)
    assert isinstance(output, Tensor)
    return output.numel() // EXAMPLES * weights[0][0].numel()


def weight_choices(
    recipe: QuantRecipe, target: Target, names: Sequence[str], *, widest: int
) -> tuple[dict[str, Choice], tuple[str, ...]]:
    """The grid of each layer's weights, and where the target overruled the recipe.

    Args:
        recipe: its part about weights.
        target: for its name and reasons.
        names: layers, in the order of forward.
        widest: bits that their products allow.

    Raises:
        PlacementError: patterns of `override` that match nothing.
        ConfigError: an asymmetric grid.
    """
    chosen = dict.fromkeys(names, recipe.weight)
    if recipe.first_last_bits is not None and names:
        chosen |= {name: replace(recipe.weight, bits=recipe.first_last_bits) for name in (names[0], names[-1])}
    apply_override(recipe, {"weight": chosen, "activation": {}})
    limit = replace(target, weight_bits=widest, activation_symmetric=False)
    notes: dict[str, None] = {}
    found = {}
    for name, tensor in chosen.items():
        activation = replace(recipe.activation, bits=8)
        grids = numerics(replace(recipe, weight=tensor, activation=activation, override={}), limit)
        notes |= dict.fromkeys(grids.notes)
        found[name] = Choice(tensor, grids.weight)
    return found, tuple(notes)


@torch.no_grad()
def weight_integers(weight: Tensor, choice: Choice) -> tuple[Tensor, Tensor]:
    """Integers of a weight `[C_out, ...]`, int8, and their scale, `[C_out]` or scalar."""
    spec = choice.spec
    axis = spec.axis if spec.granularity == "per_channel" else None
    shape = () if axis is None else (weight.shape[axis],)
    observer = choice.recipe.observer.build(shape=shape, axis=axis, spec=spec).to(weight.device)
    observer.replicated = True
    observer.observe(weight)
    scale, zero_point = qparams(observer.low, observer.high, spec)
    return quantize(weight, scale, zero_point, spec.qmin, spec.qmax, axis=spec.axis), scale


def replaced(root: nn.Module, swap: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """`root` with modules exchanged under every name that they have."""
    if root in swap:
        return swap[root]
    for name, module in list(root.named_modules(remove_duplicate=False)):
        if name and module in swap:
            root.set_submodule(name, swap[module])
    return root
