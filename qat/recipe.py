"""What to quantize how: a recipe, as written in `conf/quant/*.yaml` or in Python.

A recipe says what the user wants; the target (`target.py`) has the last word on the grid. `numerics` joins the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from qat.budget import TENSORS, Budget
from qat.component import Component
from qat.errors import ConfigError, unknown_name
from qat.presets import load_preset, read_mapping
from qat.spec import Granularity, IntSpec, Scheme
from qat.target import Target

ALL_LEVELS = "only weights leave out an integer"
STORED = (4, 8)  # widths of the types that hold weights; grids of other widths leave room in them


@dataclass(frozen=True, kw_only=True)
class TensorRecipe:
    """How one kind of tensor is quantized.

    Args:
        bits: width, 2 to 8.
        scheme: affine or symmetric.
        granularity: per tensor or per channel; activations are per tensor.
        narrow: leave out the lowest integer (weights; at 4 and 8 bits per channel always, because folding mirrors).
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

    def changed(self, values: Mapping[str, Any], where: str) -> TensorRecipe:
        """This recipe with other values; `where` they stand, for errors.

        Raises:
            ConfigError: an unknown key, or a value outside its range.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(f"quant.{where} needs a mapping such as {{bits: 4}}, got {values!r}")
        return replace(self, **_known(where, values))


@dataclass(frozen=True, kw_only=True)
class QuantRecipe:
    """A named way to quantize a model.

    Args:
        name: what plan and card call it.
        weight: weights of convolutions and linear layers.
        activation: everything that flows between operators.
        exclude: glob patterns of modules (or operators, as the plan names them) that stay in float.
        override: by glob pattern, other values for the weights of these operators and for what they put out:
            `{"layer1.*": {"weight": {"bits": 4}, "activation": {"bits": 6}}}`; of two that match, the later wins. A
            file that holds such a mapping, when parsed.
        first_last_bits: width of weights, inputs and logits of the first and last layers; None for no exception.
        sum_bits: width of values that no product reads (they go into sums, concatenations and pooling); None for the
            width of all others.
        wide_residuals: values that sums and products read have `sum_bits` too, and products read them narrowed, by a
            quantizer more; otherwise they are as narrow as products need them.
        budget: mean bits under which `qat.choose_bits` finds every width that nothing above fixes, for both tensors or
            as `{"weight": 5}`; None for the bits above.
        budget_mb: megabytes of integer weights, likewise.

    Raises:
        ConfigError: for values outside their range; unknown keys, when parsed.
    """

    name: str
    weight: TensorRecipe
    activation: TensorRecipe
    exclude: tuple[str, ...] = ()
    override: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    first_last_bits: int | None = None
    sum_bits: int | None = None
    wide_residuals: bool = False
    budget: float | Mapping[str, float] | None = None
    budget_mb: float | None = None

    def __post_init__(self) -> None:
        """Validate what spans both tensors."""
        object.__setattr__(self, "exclude", tuple(self.exclude))
        object.__setattr__(self, "override", dict(self.override or {}))  # null in YAML, where {} takes no new keys
        for pattern, change in self.override.items():
            if not isinstance(change, Mapping) or not change or set(change) - set(TENSORS):
                raise ConfigError(f"override[{pattern!r}] needs a mapping of weight or activation, got {change!r}")
            for which in change:
                changed = self.tensor(which).changed(change[which], f"override[{pattern!r}].{which}")
                if which == "activation" and changed.narrow:
                    raise ConfigError(f"override[{pattern!r}].activation.narrow must be false: {ALL_LEVELS}")
        if self.activation.narrow:
            raise ConfigError(f"activation.narrow must be false: {ALL_LEVELS}")
        for bits in (self.first_last_bits, self.sum_bits):
            if bits is not None:
                IntSpec(bits=bits)
        if not isinstance(self.wide_residuals, bool):
            raise ConfigError(f"need wide_residuals=true or false, got {self.wide_residuals!r}")
        if self.wide_residuals and self.sum_bits is None:
            raise ConfigError("wide_residuals keeps residuals at sum_bits, and that is null: set sum_bits=8 as well")
        Budget.parse(self.budget, self.budget_mb)
        if self.activation.granularity is not Granularity.PER_TENSOR:
            raise ConfigError(
                "activation.granularity must be per_tensor: integer runtimes take one scale per activation"
            )

    def tensor(self, which: str) -> TensorRecipe:
        """The recipe for `weight` or `activation`."""
        return self.weight if which == "weight" else self.activation

    @property
    def limits(self) -> Budget | None:
        """The budget under which widths are still to be found; None when all are known."""
        return Budget.parse(self.budget, self.budget_mb)

    def settled(self, widths: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None) -> QuantRecipe:
        """This recipe without a budget, and with widths that were found, as `override` has them; its own come later."""
        merged = {name: dict(change) for name, change in (widths or {}).items()}
        for pattern, change in self.override.items():
            found = merged.pop(pattern, {})  # to the end: of two patterns that match, the later wins
            merged[pattern] = {
                which: {**found.get(which, {}), **change.get(which, {})}
                for which in TENSORS
                if which in {*found, *change}
            }
        return replace(self, override=merged, budget=None, budget_mb=None)

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
        if not isinstance(value, Mapping):
            raise ConfigError(f"a recipe is a name such as w8a8, a mapping or a QuantRecipe, got {value!r}")
        known = [f.name for f in fields(cls)]
        data = dict(value)
        if isinstance(data.get("override"), str | Path):
            data["override"] = read_mapping(data["override"], "quant.override")
        for key in TENSORS:
            if not isinstance(data.get(key), TensorRecipe):
                data[key] = _tensor_recipe(key, data.get(key) or {})
        for key in data:
            if key not in known:
                raise ConfigError(unknown_name("key of a recipe", key, known))
        if "name" not in data:
            raise ConfigError("a recipe needs a name: name=my_recipe")
        return cls(**data)


def _tensor_recipe(which: str, value: Mapping[str, Any]) -> TensorRecipe:
    missing = [f.name for f in fields(TensorRecipe) if f.name not in {"narrow", *value}]
    data = _known(which, value)
    if missing:
        raise ConfigError(f"quant.{which} lacks {', '.join(missing)}; start from the recipe w8a8 and change a value")
    return TensorRecipe(**data)


def _known(where: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values for fields of `TensorRecipe`, names of enum members turned into members."""
    known = [f.name for f in fields(TensorRecipe)]
    for key in values:
        if key not in known:
            raise ConfigError(unknown_name(f"key of quant.{where}", str(key), known))
    data = dict(values)
    if "scheme" in data:
        data["scheme"] = IntSpec(scheme=data["scheme"]).scheme
    if "granularity" in data:
        data["granularity"] = IntSpec(granularity=data["granularity"]).granularity
    return data


@dataclass(frozen=True, kw_only=True)
class Numerics:
    """The grids that a recipe gets on a target, and where the target overruled it."""

    weight: IntSpec
    activation: IntSpec
    notes: tuple[str, ...] = ()


def numerics(recipe: QuantRecipe, target: Target) -> Numerics:
    """Join recipe and target; the target has the last word.

    Raises:
        ConfigError: when the target cannot run the recipe at all, or its widths are still to be found.
    """
    if recipe.limits is not None:
        raise ConfigError(
            f"recipe {recipe.name} has a budget, {recipe.limits}, and its widths are not found yet: "
            "qat.choose_bits(qat.measure_sensitivity(model, batches, recipe)) returns the recipe that has them"
        )
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
    if weight.bits > target.weight_bits:
        notes.append(f"weights: {weight.bits} -> {target.weight_bits} bits, {target.weight_bits_reason}")
        weight = replace(weight, bits=target.weight_bits)
    if weight.granularity is Granularity.PER_CHANNEL and not weight.narrow and weight.bits in STORED:
        notes.append(
            f"weights of {weight.bits} bits: without {weight.qmin}, whose mirror image INT{weight.bits} does not have, "
            "and channels with a negative gamma are mirrored"
        )
        weight = replace(weight, narrow=True)
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
