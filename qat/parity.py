"""The parity table and its gate: what the stages between a model and its artefact did to the answers.

    float | prepared, fake-quant off | fake-quant | integer reference | runtime, optimizations off | runtime, default

A `Stage` is a column, a `Tolerance` what the gated ones may be away from the base, a `ParityReport` all of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from qat.errors import ConfigError, ParityError
from qat.runtime.coverage import Coverage

HINT = "verify(..., layerwise=True) shows every value, docs/howto/parity.md what the first stage that departs means"


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far the artefact may be from the fake-quant model.

    Args:
        agreement: least share of examples with the same class, in percent. 99: on an untrained or barely trained model
            many logits tie to within a step, so that single flips change classes; a trained one stays above 99.5.
        top1: largest difference of top-1, in points.
        in_float: most operators that the runtime may execute in float; 0 allows integers alone, None does not ask.
    """

    agreement: float = 99.0
    top1: float = 0.5
    in_float: int | None = None

    def __post_init__(self) -> None:
        """Refuse what nothing can be compared with.

        Raises:
            ConfigError: no percentage, no number of points, no count.
        """
        for name, value, all_of in (("agreement", self.agreement, 0), ("top1", self.top1, 100)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
                raise ConfigError(f"need {name} to be a number >= 0, got {value!r}; {name}={all_of} lets all pass")
        if self.in_float is not None and (type(self.in_float) is not int or self.in_float < 0):
            raise ConfigError(f"need in_float to be a count of operators, or null, got {self.in_float!r}")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One column of the ladder, over all examples.

    Attributes:
        name: what computed it.
        top1: percent; None without labels.
        agreement: percent of examples with the fake-quant model's class.
        max_steps: largest difference from the fake-quant model's output, in steps of the output's grid.
        mean_steps: mean of that difference.
        gated: whether the tolerance applies.
        agreement_before: percent of examples with the class of the stage before; None for the first.
        mean_steps_before: mean difference from the output of the stage before; None for the first.
    """

    name: str
    top1: float | None
    agreement: float
    max_steps: float
    mean_steps: float
    gated: bool
    agreement_before: float | None = None
    mean_steps_before: float | None = None


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One value of the model, in the fake-quant model and in the artefact.

    Attributes:
        site: its name.
        max_steps: largest difference of its integers.
        off: share of its integers that differ, 0 to 1.
        departed: share of its integers that differ by more than one.
    """

    site: str
    max_steps: int
    off: float
    departed: float


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """The parity table.

    Attributes:
        stages: in the order of the ladder.
        examples: how many were compared.
        step: size of one step of the output's grid, in logits; None when the output is in float.
        tolerance: what was allowed.
        departure: the first layer that departs, when the gate fails.
        layers: every intermediate value of the worst batch, when `verify` was asked for them.
        hint: what to do when the gate fails.
        coverage: what the runtime executes on integers, when the tolerance asks for it; None where it does not tell.
        base: the stage that the others are compared with, by the beginning of its name.
    """

    stages: tuple[Stage, ...]
    examples: int
    step: float | None
    tolerance: Tolerance
    departure: str = ""
    layers: tuple[Layer, ...] = ()
    hint: str = HINT
    coverage: Coverage | None = None
    base: str = "fake-quant"

    def stage(self, name: str) -> Stage:
        """A stage by the beginning of its name."""
        return next(s for s in self.stages if s.name.startswith(name))

    @property
    def failures(self) -> tuple[str, ...]:
        """What lies outside the tolerance, one sentence each."""
        base = self.stage(self.base)
        found = []
        for s in self.stages:
            if not s.gated:
                continue
            if s.agreement < self.tolerance.agreement:
                found.append(f"{s.name}: agreement {s.agreement:.2f} %, need {self.tolerance.agreement:g} %")
            if s.top1 is not None and base.top1 is not None and abs(s.top1 - base.top1) > self.tolerance.top1:
                found.append(
                    f"{s.name}: top-1 {s.top1:.2f} % against {base.top1:.2f} %, need {self.tolerance.top1:g} points"
                )
        return (*found, *self._in_float())

    def _in_float(self) -> Iterator[str]:
        allowed = self.tolerance.in_float
        if allowed is None:
            return
        if self.coverage is None:
            yield f"{self.stages[-1].name} does not show what it executes in float, need at most {allowed} operators"
        elif len(found := self.coverage.in_float) > allowed:
            names = ", ".join(map(str, found[:5])) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
            yield f"{self.coverage.runtime} executes {len(found)} operators in float, need at most {allowed}: {names}"

    @property
    def passed(self) -> bool:
        """Whether every gated stage lies within the tolerance."""
        return not self.failures

    def require(self) -> ParityReport:
        """Itself, if passed.

        Raises:
            ParityError: naming what is outside the tolerance and the first layer that departs.
        """
        if not self.passed:
            where = f" First layer that departs: {self.departure}." if self.departure else ""
            raise ParityError(
                f"the artefact departs from the trained model: {'; '.join(self.failures)}.{where} {self.hint}"
            )
        return self
