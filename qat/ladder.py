"""Any stages beside each other on the same batches: what `verify` does for models from `qat.prepare`, for the others.

    float | integer reference | runtime, optimizations off | runtime, default

The stages share nothing but their inputs; which of them may depart, and from which, is the caller's to say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qat.calibrate import labels_of
from qat.errors import DataError, NumericsError
from qat.inputs import Inputs
from qat.parity import ParityReport, Stage, Tolerance

NEAR_STEPS, NEAR = 2, 0.05  # without classes: two steps are roundings on the way; a twentieth no use would notice

Run = Callable[[Inputs], Tensor]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What `compare` found.

    Attributes:
        stages: in the order in which they were given.
        examples: how many were compared.
        worst: the batch in which the stages differ most; None where none differs.
    """

    stages: tuple[Stage, ...]
    examples: int
    worst: Inputs | None


@dataclass
class _Tally:
    """What is counted of a stage, batch by batch."""

    name: str
    gated: bool
    decisions: int = 0  # examples; where every place has a class, [N, C, H, W], places
    correct: int = 0
    agree: int = 0
    max_steps: float = 0.0
    sum_steps: float = 0.0
    values: int = 0
    agree_before: int = 0
    sum_before: float = 0.0
    follows: bool = False  # another stage

    def add(
        self, output: Tensor, base: Tensor, labels: Tensor | None, step: float, before: Tensor | None = None
    ) -> None:
        """Count one batch: outputs `[N, classes, ...]` of this stage, of the base, and of the stage before."""
        if not torch.isfinite(output).all():
            raise NumericsError(f"NaN or Inf in the output of stage {self.name!r}; compare layer by layer from there")
        steps = (output - base).abs().div(step)
        same = agrees(output, base, step)
        self.decisions += same.numel()
        self.agree += int(same.sum())
        self.correct += int((output.argmax(1) == labels.cpu()).sum()) if labels is not None else 0
        self.max_steps = max(self.max_steps, float(steps.max()))
        self.sum_steps += float(steps.sum())
        self.values += steps.numel()
        if before is not None:
            self.follows = True
            self.agree_before += int(agrees(output, before, step).sum())
            self.sum_before += float((output - before).abs().div(step).sum())

    def stage(self, labelled: bool) -> Stage:
        """The finished column."""
        return Stage(
            name=self.name,
            top1=100.0 * self.correct / self.decisions if labelled else None,
            agreement=100.0 * self.agree / self.decisions,
            max_steps=self.max_steps,
            mean_steps=self.sum_steps / self.values,
            gated=self.gated,
            agreement_before=100.0 * self.agree_before / self.decisions if self.follows else None,
            mean_steps_before=self.sum_before / self.values if self.follows else None,
        )


def agrees(output: Tensor, base: Tensor, step: float) -> Tensor:
    """Where two outputs say the same.

    Of `[N, classes, ...]` the class, `[N, ...]`. Without an axis of classes, `[N]` or `[N, 1]`, the value: within
    `NEAR_STEPS`, or `NEAR` of the largest value of the base in this batch.

    Args:
        output: of one stage.
        base: of the stage that it is compared with, of the same shape.
        step: of the output's grid, in units of the output.
    """
    if _has_classes(base):
        return output.argmax(1) == base.argmax(1)
    return (output - base).abs() <= max(NEAR_STEPS * step, NEAR * float(base.abs().max()))


def _has_classes(output: Tensor) -> bool:
    return output.ndim > 1 and output.shape[1] > 1


@torch.no_grad()
def compare(
    stages: Mapping[str, Run], batches: Iterable[Any], *, base: str, free: tuple[str, ...] = (), step: float = 1.0
) -> Comparison:
    """Run every stage on every batch, and count by how much it differs from the base and from the stage before.

    Args:
        stages: by name, what maps inputs to an output, `[N, classes]` as a rule (see `agrees`).
        batches: inputs `[N, ...]`, alone or with labels `[N]`.
        base: the stage that the others are compared with.
        free: stages that may depart as far as they like, such as `float`.
        step: unit of the differences, in units of the output.

    Raises:
        DataError: no batch.
        NumericsError: NaN or Inf in an output.
    """
    tallies = {name: _Tally(name, name not in (*free, base)) for name in stages}
    examples, labelled = 0, True
    most, worst = 0.0, None
    for batch in batches:
        x, labels = Inputs.of(batch), labels_of(batch)
        before = sum(t.sum_steps for t in tallies.values())
        reference, previous = stages[base](x), None
        if labels is not None and not (_has_classes(reference) and labels.shape == reference.argmax(1).shape):
            labels = None
        for name, run in stages.items():
            output = reference if name == base else run(x)
            tallies[name].add(output, reference, labels, step, previous)
            previous = output
        steps = sum(t.sum_steps for t in tallies.values()) - before
        if steps > most:
            most, worst = steps, x
        examples += len(x)
        labelled &= labels is not None
    if not examples:
        raise DataError("verification saw no batch; pass the validation split, e.g. its DataLoader")
    columns = tuple(t.stage(labelled) for t in tallies.values())
    return Comparison(stages=columns, examples=examples, worst=worst)


def ladder(
    stages: Mapping[str, Run],
    batches: Iterable[Any],
    *,
    base: str,
    free: tuple[str, ...] = (),
    tolerance: Tolerance | None = None,
    hint: str = "",
) -> ParityReport:
    """The parity table of `stages`; differences of their outputs are in units of the output.

    Args:
        stages: by name, what maps inputs to an output `[N, classes]`.
        batches: inputs `[N, ...]`, alone or with labels `[N]`.
        base: the stage that the others are compared with.
        free: stages that may depart as far as they like, such as `float`.
        tolerance: how far the others may be from the base.
        hint: what to do when the gate fails.

    Raises:
        DataError: no batch.
        NumericsError: NaN or Inf in an output.
    """
    compared = compare(stages, batches, base=base, free=free)
    return ParityReport(
        stages=compared.stages,
        examples=compared.examples,
        step=None,
        tolerance=tolerance or Tolerance(),
        hint=hint,
        base=base,
    )
