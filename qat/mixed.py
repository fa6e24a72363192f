"""Mixed precision: the width of every open tensor that adds the least noise, under a budget.

    minimize sum_i noise_i(b_i) subject to mean bits <= B, or to stored bytes <= B (budget.py)

noise_i is what `qat.measure_sensitivity` found for tensor i alone. An integer program with one choice for each tensor
(functional/knapsack.py), solved exactly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qat.budget import MB, TENSORS, Budget
from qat.errors import ConfigError
from qat.functional.knapsack import Table, least_harm
from qat.functional.snr import decibels
from qat.placement.prepared import PreparedModel, quantizers
from qat.placement.units import Unit
from qat.recipe import QuantRecipe
from qat.sensitivity import AtWidth, Measured, Score, Sensitivity
from qat.spec import MAX_BITS

PACKED_BITS, PACKED_OPSET = 4, 21  # an ONNX file stores these and narrower ones two to a byte: export/packing.py


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """A width for every open tensor.

    Args:
        budget: that was kept to.
        widths: by tensor.
        weight_bytes: of all integer weights, chosen and fixed, as the file stores them.
    """

    budget: Budget
    widths: Mapping[Unit, AtWidth]
    weight_bytes: int

    @property
    def snr(self) -> float:
        """Of the outputs, in dB, as the sum of the noise of each chosen tensor predicts it."""
        return decibels(1.0, sum(at.score.noise for at in self.widths.values()))

    def mean_bits(self, which: str) -> float | None:
        """Of the chosen weights or activations; None where none was chosen."""
        chosen = {unit: at for unit, at in self.widths.items() if unit.tensor == which}
        total = sum(unit.size for unit in chosen)
        return sum(unit.size * at.grid_bits for unit, at in chosen.items()) / total if chosen else None

    @property
    def override(self) -> dict[str, dict[str, dict[str, int]]]:
        """The widths as `quant.override` takes them; a name above another comes first, and loses."""
        found: dict[str, dict[str, dict[str, int]]] = {}
        for unit, at in sorted(self.widths.items(), key=lambda item: item[0].name.count(".")):
            found.setdefault(unit.name, {})[unit.tensor] = {"bits": at.bits}
        return found


def choose_bits(
    found: Sensitivity, *, budget: float | Mapping[str, float] | None = None, budget_mb: float | None = None
) -> QuantRecipe:
    """The measured recipe with the widths that add the least noise under a budget.

    Args:
        found: from `qat.measure_sensitivity`.
        budget: mean bits of weights and of activations, or `{"weight": 5}` for one of them.
        budget_mb: megabytes of integer weights; neither: the recipe's own budget.

    Returns:
        A recipe for `qat.prepare`: its `override` has every width.

    Raises:
        ConfigError: no budget, one out of range or that no width can keep to, or nothing to choose.
    """
    limits = Budget.parse(budget, budget_mb) or found.recipe.limits
    if limits is None:
        raise ConfigError("choose_bits needs a budget: budget=5 for mean bits, budget_mb=0.2 for megabytes of weights")
    return found.recipe.settled(mix(found, limits).override)


def mix(found: Sensitivity, budget: Budget) -> Mixture:
    """The widths under a budget.

    Raises:
        ConfigError: nothing to choose, or a budget that no choice keeps to; says the smallest that can be met.
    """
    chosen = [m for m in found.tensors if m.widths and m.unit.tensor in budget.tensors]
    for which in budget.tensors:
        if not any(m.unit.tensor == which for m in chosen):
            raise ConfigError(
                f"a budget of {budget} has no {which} to choose a width for: first_last_bits, sum_bits and override of "
                f"recipe {found.recipe.name} fix all of them, or none of their widths was measured. Leave {which} out "
                "of the budget"
            )
    packs = found.target.runtime == "onnxruntime" and found.target.opset >= PACKED_OPSET
    fixed = sum(
        stored_bytes(m.unit.size, m.bits, packs=packs)
        for m in found.tensors
        if m.unit.tensor == "weight" and m not in chosen
    )
    costs = _costs(chosen, packs=packs)
    limits: list[tuple[Table, float]] = []
    for which in TENSORS:
        if (limit := budget.mean_bits(which)) is not None:
            total = sum(m.unit.size for m in chosen if m.unit.tensor == which)
            least = sum(min(cost) for cost in costs[which]) / total
            if least > limit:
                raise ConfigError(
                    f"no choice of widths has mean bits of {limit:g} for {which}s: the smallest that can be met is "
                    f"{_up(least, 3)}, at {_listed(chosen, which)} bits. Raise quant.budget, allow narrower ones with "
                    f"analyze.{which}_bits, or give quant.budget={{{_other(which)}: BITS}}"
                )
            limits.append((costs[which], limit * total))
    if budget.weight_bytes is not None:
        least = fixed + sum(min(cost) for cost in costs["bytes"])
        if least > budget.weight_bytes:
            raise ConfigError(
                f"no choice of widths stores the weights in {budget.weight_bytes / MB:g} MB: the smallest "
                f"quant.budget_mb that can be met is {_up(least / MB, 6)}, at {_listed(chosen, 'weight')} bits"
                f"{', two to a byte at 4' if packs else ''}; {_up(fixed / MB, 6)} of it are fixed by first_last_bits "
                "or override"
            )
        if any(min(cost) for cost in costs["bytes"]):
            limits.append((costs["bytes"], budget.weight_bytes - fixed))
    picks = least_harm([[at.score.noise for at in m.widths] for m in chosen], limits)
    taken = {m.unit: m.widths[pick] for m, pick in zip(chosen, picks, strict=True)}
    weights = {unit: at for unit, at in taken.items() if unit.tensor == "weight"}
    spent = sum(stored_bytes(unit.size, at.grid_bits, packs=packs) for unit, at in weights.items())
    return Mixture(budget=budget, widths=taken, weight_bytes=fixed + spent)


def require_possible(
    prepared: PreparedModel, budget: Budget, *, weight_bits: Sequence[int], activation_bits: Sequence[int]
) -> None:
    """Raise what `mix` would, of a budget that cannot be met, before anything is measured.

    Raises:
        ConfigError: as `mix`.
    """
    nothing = Score(noise=0.0, loss=None)
    widest = {"weight": prepared.target.weight_bits, "activation": MAX_BITS}
    tried = {"weight": weight_bits, "activation": activation_bits}
    tensors = []
    for unit in prepared.units:
        most = widest[unit.tensor]
        widths = (AtWidth(bits=bits, grid_bits=min(bits, most), score=nothing) for bits in tried[unit.tensor])
        bits = quantizers(prepared)[unit.quantizer].spec.bits
        tensors.append(Measured(unit=unit, bits=bits, widths=tuple(widths) if unit.open else ()))
    mix(
        Sensitivity(
            model=prepared.plan.model, recipe=prepared.recipe, target=prepared.target, examples=0, float_loss=None,
            quantized=None, tensors=tuple(tensors),
        ),
        budget,
    )  # fmt: skip


def halfway(found: Sensitivity) -> Budget | None:
    """The budget in the middle of what the measured widths allow; None where no width is open."""
    means = {}
    for which in TENSORS:
        opened = [m for m in found.tensors if m.widths and m.unit.tensor == which]
        if total := sum(m.unit.size for m in opened):
            ends = (m.unit.size * (m.widths[0].grid_bits + m.widths[-1].grid_bits) / 2 for m in opened)
            means[which] = sum(ends) / total
    return Budget(**means) if means else None


def front(found: Sensitivity, *, step: float = 0.5) -> tuple[Mixture, ...]:
    """Mixtures at the same mean bits of weights and of activations, from the narrowest to the widest."""
    ends = {}
    for which in TENSORS:
        if opened := [m.widths for m in found.tensors if m.widths and m.unit.tensor == which]:
            # a width that all can reach, and the widest
            ends[which] = max(w[0].grid_bits for w in opened), max(w[-1].grid_bits for w in opened)
    if not ends:
        return ()
    low, high = min(low for low, _ in ends.values()), max(high for _, high in ends.values())
    means = [low + step * i for i in range(int((high - low) / step) + 1)]
    budgets = [Budget(**{w: min(max(mean, least), most) for w, (least, most) in ends.items()}) for mean in means]
    return tuple(mix(found, budget) for budget in dict.fromkeys(budgets))


def stored_bytes(size: int, bits: int, *, packs: bool) -> int:
    """Bytes of so many integers in a file."""
    return (size + 1) // 2 if packs and bits <= PACKED_BITS else size


def _costs(chosen: Sequence[Measured], *, packs: bool) -> dict[str, list[list[float]]]:
    """Of every width of every tensor: bits times values, for weights and activations apart, and bytes of weights."""

    def table(which: str, cost: Any) -> list[list[float]]:
        return [[float(cost(m, at)) if m.unit.tensor == which else 0.0 for at in m.widths] for m in chosen]

    bits = {which: table(which, lambda m, at: m.unit.size * at.grid_bits) for which in TENSORS}
    return {**bits, "bytes": table("weight", lambda m, at: stored_bytes(m.unit.size, at.grid_bits, packs=packs))}


def _listed(chosen: Sequence[Measured], which: str) -> str:
    return ", ".join(
        str(bits) for bits in sorted({at.bits for m in chosen if m.unit.tensor == which for at in m.widths})
    )


def _other(which: str) -> str:
    return next(other for other in TENSORS if other != which)


def _up(value: float, digits: int) -> str:
    """Rounded up, so that the number itself can be met."""
    text = f"{math.ceil(value * 10**digits - 1e-9) / 10**digits:.{digits}f}"
    return text.rstrip("0").rstrip(".")
