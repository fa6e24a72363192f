"""What each grid of a model costs at its outputs: one tensor quantized alone, and all but one.

    alone       y' = f with one quantizer on             what this tensor costs by itself
    without     y' = f with every other quantizer on     what the model would gain if this tensor stayed in float
    noise     = sum (y' - y)^2 / sum y^2                 y: outputs in float; in dB, SNR = -10 log10 noise
    loss      = mean cross-entropy of y', where batches have labels

Small errors of different tensors are independent, so their noise adds up: what `qat.choose_bits` goes by.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qat.budget import TENSORS
from qat.calibrate import calibrate, forward, labels_of
from qat.errors import CalibrationError, ConfigError, NumericsError
from qat.functional.snr import decibels
from qat.inputs import Inputs, first_output
from qat.placement.prepare import prepare
from qat.placement.prepared import PreparedModel, quantizers
from qat.placement.units import Unit
from qat.recipe import QuantRecipe
from qat.spec import MAX_BITS, IntSpec
from qat.switches import fake_quant
from qat.target import Target
from qat.walk import Walk

WIDTHS = (4, 5, 6, 8)  # to try; a weight of 3 bits takes as much of a file as one of 4
Progress = Callable[[Sequence[Unit], str], Iterable[Unit]]


@dataclass(frozen=True, kw_only=True)
class Score:
    """The outputs under some quantizers, against those in float.

    Args:
        noise: energy of the difference, over that of the outputs.
        loss: mean cross-entropy; None for batches without labels, or outputs that are no logits.
    """

    noise: float
    loss: float | None

    @property
    def snr(self) -> float:
        """In dB."""
        return decibels(1.0, self.noise)


@dataclass(frozen=True, kw_only=True)
class AtWidth:
    """A tensor alone at one width.

    Args:
        bits: as a recipe asks for them.
        grid_bits: what the target leaves of them.
        score: of the outputs.
    """

    bits: int
    grid_bits: int
    score: Score


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A tensor with what its grids cost.

    Args:
        unit: the tensor.
        bits: of its grid under the recipe.
        alone: under the recipe, all others in float; None where not asked for.
        without: under the recipe, this one in float; None where not asked for.
        widths: alone, at each width that may be chosen, narrowest first; none where the width is fixed.
    """

    unit: Unit
    bits: int
    alone: Score | None = None
    without: Score | None = None
    widths: tuple[AtWidth, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """What was measured.

    Args:
        model: its class.
        recipe: as it was given, with its budget if it has one.
        target: which stores the weights.
        examples: in the batches.
        float_loss: of the model in float; None as in `Score`.
        quantized: all tensors under the recipe; None where not asked for.
        tensors: in the order of the graph, weights first.
    """

    model: str
    recipe: QuantRecipe
    target: Target
    examples: int
    float_loss: float | None
    quantized: Score | None
    tensors: tuple[Measured, ...]


@dataclass
class _Sums:
    """Over batches, from which a score is made."""

    noise: float = 0.0
    loss: float | None = 0.0

    def add(self, y: Tensor, reference: Tensor, labels: Tensor | None) -> None:
        """Take in the outputs of a batch, `[N, ...]`."""
        self.noise += float((y - reference).square().sum())
        logits = labels is not None and labels.ndim == 1 and not labels.is_floating_point() and y.ndim == 2
        if labels is None or not logits or self.loss is None:
            self.loss = None
        else:
            self.loss += float(F.cross_entropy(y, labels.to(y.device).long(), reduction="sum"))


class _Outputs:
    """Batches with the outputs of the float model; scores other outputs against them."""

    def __init__(self, prepared: PreparedModel, batches: Sequence[Any]) -> None:
        self.batches = batches
        self.inputs = [Inputs.of(batch) for batch in batches]
        self.examples = sum(map(len, self.inputs))
        fake_quant(prepared, enabled=False)
        self.float = [first_output(forward(prepared, batch)).double() for batch in batches]
        self.signal = sum(float(y.square().sum()) for y in self.float)
        self.loss = self.score(self.float).loss

    def score(self, outputs: Iterable[Tensor]) -> Score:
        """Of the outputs of all batches."""
        sums = _Sums()
        for i, y in enumerate(outputs):
            sums.add(y.double(), self.float[i], labels_of(self.batches[i]))
        return self.done(sums)

    def done(self, sums: _Sums) -> Score:
        """The score of what was summed over all batches."""
        if not math.isfinite(self.signal) or not math.isfinite(sums.noise):
            raise NumericsError("NaN or Inf in the outputs while measuring. Run task=ptq, which names where it begins")
        noise = sums.noise / self.signal if self.signal else sums.noise
        return Score(noise=noise, loss=None if sums.loss is None else sums.loss / self.examples)

    def toggled(
        self, prepared: PreparedModel, units: Sequence[Unit], *, on: bool, stage: str, progress: Progress
    ) -> dict[Unit, Score]:
        """Each unit's quantizer switched to `on`, all others to the opposite."""
        found = quantizers(prepared)
        fake_quant(prepared, enabled=not on)
        sums = {unit: _Sums() for unit in units}
        for i, inputs in enumerate(self.inputs):
            walk = Walk(prepared, inputs)
            places = {unit: walk.place(unit.quantizer) for unit in units}
            ordered = sorted(units, key=places.__getitem__)
            for unit in progress(ordered, f"{stage}, batch {i + 1} of {len(self.inputs)}"):
                walk.to(places[unit])
                found[unit.quantizer].enabled = on
                y = first_output(walk.rest()).double()
                found[unit.quantizer].enabled = not on
                sums[unit].add(y, self.float[i], labels_of(self.batches[i]))
        return {unit: self.done(total) for unit, total in sums.items()}


@torch.no_grad()
def measure_sensitivity(
    model: nn.Module,
    batches: Iterable[Any],
    recipe: str | Mapping[str, Any] | QuantRecipe = "w8a8",
    target: str | Mapping[str, Any] | Target = "onnxruntime",
    *,
    max_batches: int | None = 2,
    weight_bits: Sequence[int] = WIDTHS,
    activation_bits: Sequence[int] = WIDTHS,
    under_recipe: bool = True,
    exclude: Sequence[str] = (),
    progress: Progress = lambda units, stage: units,
) -> Sensitivity:
    """Measure what each weight and activation of a float model costs, under a recipe and at each of some widths.

    Costs half a run over the batches for every tensor and width, because what comes before a tensor is computed once;
    and one more for every tensor `under_recipe`. The model is not changed.

    Args:
        model: a float model.
        batches: inputs, alone or with labels, as `qat.inputs` lists; a few are enough. They set the ranges too.
        recipe: its exceptions (`first_last_bits`, `sum_bits`, `override`) have one width, which is not varied. Where it
            has a budget, only tensors that the budget limits are varied.
        target: where the model will run.
        max_batches: use so many; None for all.
        weight_bits: widths of weights to try; empty leaves weights as they are.
        activation_bits: widths of activations to try, likewise.
        under_recipe: measure the recipe's own widths too, which a search does not need.
        exclude: glob patterns of modules that stay in float, besides the recipe's.
        progress: given the tensors of a stage and its name, what to iterate over; shows a bar.

    Raises:
        ConfigError: an unknown recipe or target; a width out of range.
        PlacementError: nothing to quantize; a pattern that matches nothing.
        CalibrationError: no batch.
        NumericsError: NaN or Inf in the model, its ranges or outputs.
    """
    recipe, target = QuantRecipe.parse(recipe), Target.parse(target)
    base, limits = recipe.settled(), recipe.limits
    tried = {"weight": widths("weight_bits", weight_bits), "activation": widths("activation_bits", activation_bits)}
    if not target.narrow_activations:
        tried["activation"] = tuple(bits for bits in tried["activation"] if bits == MAX_BITS)
    if limits is not None:
        tried = {which: tried[which] if which in limits.tensors else () for which in TENSORS}
    kept = list(islice(batches, max_batches))
    if not kept:
        raise CalibrationError("sensitivity needs at least one batch; pass batches, e.g. a DataLoader")
    example = Inputs.of(kept[0])

    def prepared_as(chosen: QuantRecipe) -> PreparedModel:
        made = prepare(model, example.args, chosen, target, example_kwargs=example.kwargs, exclude=exclude).eval()
        calibrate(made, kept)
        return made

    prepared = prepared_as(base)
    outputs, units = _Outputs(prepared, kept), prepared.units
    grids = {unit: quantizers(prepared)[unit.quantizer].spec.bits for unit in units}
    alone, without, quantized = dict[Unit, Score](), dict[Unit, Score](), None
    if under_recipe:
        alone = outputs.toggled(prepared, units, on=True, stage="alone", progress=progress)
        without = outputs.toggled(prepared, units, on=False, stage="all but one", progress=progress)
        fake_quant(prepared, enabled=True)
        quantized = outputs.score(first_output(forward(prepared, batch)) for batch in kept)
    found: dict[Unit, list[AtWidth]] = {unit: [] for unit in units}
    for bits in sorted({*tried["weight"], *tried["activation"]}):
        wanted = {w: replace(base.tensor(w), bits=bits) if bits in tried[w] else base.tensor(w) for w in TENSORS}
        prepared = prepared_as(replace(base, **wanted))  # type: ignore[arg-type]
        left = {unit: quantizers(prepared)[unit.quantizer].spec.bits for unit in units}  # of `bits`, by the target
        varied = [
            unit
            for unit in units
            if unit.open and bits in tried[unit.tensor] and all(at.grid_bits != left[unit] for at in found[unit])
        ]
        known = {unit: alone[unit] for unit in varied if alone and grids[unit] == left[unit]}
        new = [unit for unit in varied if unit not in known]
        scores = {**known, **outputs.toggled(prepared, new, on=True, stage=f"{bits} bits", progress=progress)}
        for unit in varied:
            found[unit].append(AtWidth(bits=bits, grid_bits=left[unit], score=scores[unit]))
    return Sensitivity(
        model=type(model).__name__,
        recipe=recipe,
        target=target,
        examples=outputs.examples,
        float_loss=outputs.loss,
        quantized=quantized,
        tensors=tuple(
            Measured(unit=u, bits=grids[u], alone=alone.get(u), without=without.get(u), widths=tuple(found[u]))
            for u in units
        ),
    )


def widths(name: str, given: Sequence[int]) -> tuple[int, ...]:
    """Widths to try, narrowest first.

    Raises:
        ConfigError: no list, or a width out of range.
    """
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise ConfigError(f"need {name} as a list of widths such as [4, 8], got {given!r}")
    return tuple(sorted({IntSpec(bits=bits).bits for bits in given}))
