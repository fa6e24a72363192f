"""What to quantize how: a recipe, as written in `conf/quant/*.yaml` or in Python.

A recipe says what the user wants; the target (`target.py`) has the last word on the grid. `numerics` joins the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from qat.component import Component
from qat.errors import ConfigError, unknown_name
from qat.presets import load_preset
from qat.spec import Granularity, IntSpec, Scheme
from qat.target import Target


@dataclass(frozen=True, kw_only=True)
class TensorRecipe:
    """How one kind of tensor is quantized.

    Args:
        bits: width, 2 to 8.
        scheme: affine or symmetric.
        granularity: per tensor or per channel; activations are per tensor.
        narrow: leave out the lowest integer (weights; folding needs it).
        observer: the range estimator.
        quantizer: the fake-quant module.
    """

    bits: int
    scheme: Scheme
    granularity: Granularity
    observer: Component
    quantizer: Component
    narrow: bool = False

    def __post_init__(self) -> None:
        """Validate through `IntSpec`, and parse YAML's mappings."""
        object.__setattr__(self, "observer", Component.parse(self.observer))
        object.__setattr__(self, "quantizer", Component.parse(self.quantizer))
        IntSpec(bits=self.bits, scheme=self.scheme, granularity=self.granularity)


@dataclass(frozen=True, kw_only=True)
class QuantRecipe:
    """A named way to quantize a model.

    Args:
        name: what plan and card call it.
        weight: weights of convolutions and linear layers.
        activation: everything that flows between operators.
        exclude: glob patterns of modules (or operators, as the plan names them) that stay in float.

    Raises:
        ConfigError: for values outside their range; unknown keys, when parsed.
    """

    name: str
    weight: TensorRecipe
    activation: TensorRecipe
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Validate what spans both tensors."""
        object.__setattr__(self, "exclude", tuple(self.exclude))
        if self.activation.granularity is not Granularity.PER_TENSOR:
            raise ConfigError(
                "activation.granularity must be per_tensor: integer runtimes take one scale per activation"
            )

    @classmethod
    def parse(cls, value: str | Mapping[str, Any] | QuantRecipe) -> QuantRecipe:
        """A recipe from its name, from YAML's mapping, or as it is.

        Raises:
            ConfigError: unknown name (the known ones are listed) or key.
        """
        if isinstance(value, QuantRecipe):
            return value
        if isinstance(value, str):
            value = load_preset("quant", value)
        known = [f.name for f in fields(cls)]
        data = dict(value)
        for key in ("weight", "activation"):
            if not isinstance(data.get(key), TensorRecipe):
                data[key] = _tensor_recipe(key, data.get(key) or {})
        for key in data:
            if key not in known:
                raise ConfigError(unknown_name("key of a recipe", key, known))
        if "name" not in data:
            raise ConfigError("a recipe needs a name: name=my_recipe")
        return cls(**data)


def _tensor_recipe(which: str, value: Mapping[str, Any]) -> TensorRecipe:
    known = [f.name for f in fields(TensorRecipe)]
    for key in value:
        if key not in known:
            raise ConfigError(unknown_name(f"key of quant.{which}", str(key), known))
    missing = [k for k in known if k != "narrow" and k not in value]
    if missing:
        raise ConfigError(f"quant.{which} lacks {', '.join(missing)}; start from the recipe w8a8 and change a value")
    data = dict(value)
    data["scheme"] = IntSpec(scheme=data["scheme"]).scheme
    data["granularity"] = IntSpec(granularity=data["granularity"]).granularity
    return TensorRecipe(**data)


@dataclass(frozen=True, kw_only=True)
class Numerics:
    """The grids that a recipe gets on a target, and where the target overruled it."""

    weight: IntSpec
    activation: IntSpec
    notes: tuple[str, ...] = ()


def numerics(recipe: QuantRecipe, target: Target) -> Numerics:
    """Join recipe and target; the target has the last word.

    Raises:
        ConfigError: when the target cannot run the recipe at all.
    """
    notes = []
    weight = IntSpec(
        bits=recipe.weight.bits,
        signed=True,
        narrow=recipe.weight.narrow,
        scheme=recipe.weight.scheme,
        granularity=recipe.weight.granularity,
        axis=0,
    )
    if weight.scheme is not Scheme.SYMMETRIC:
        raise ConfigError(
            f"weight.scheme must be symmetric for target {target.name}: its products have no weight offset"
        )
    if weight.granularity is Granularity.PER_CHANNEL and not weight.narrow:
        raise ConfigError("per-channel weights need narrow: true, or BatchNorm with gamma < 0 does not fold exactly")
    if weight.bits > target.weight_bits:
        notes.append(f"weights: {weight.bits} -> {target.weight_bits} bits, {target.weight_bits_reason}")
        weight = replace(weight, bits=target.weight_bits)
    scheme = recipe.activation.scheme
    if target.activation_symmetric and scheme is not Scheme.SYMMETRIC:
        notes.append(f"activations: {scheme} -> symmetric, {target.name} has no zero points")
        scheme = Scheme.SYMMETRIC
    if recipe.activation.bits < 8 and not target.narrow_activations:
        raise ConfigError(
            f"target {target.name} stores activations of 8 bits, and recipe {recipe.name} has "
            f"{recipe.activation.bits}: use quant.activation.bits=8, or target=onnxruntime, which clips the integers"
        )
    activation = IntSpec(bits=recipe.activation.bits, signed=target.activation_signed, scheme=scheme, narrow=False)
    return Numerics(weight=weight, activation=activation, notes=tuple(notes))
