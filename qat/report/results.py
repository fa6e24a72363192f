"""`results.json` as the report reads it: its form, checked, and a message where a file has another.

Numbers are there of the stages that a run has: an evaluated float model has no int8, a dynamic one no PTQ.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qat.errors import ReportError
from qat.report.form import parse

FILE = "results.json"
UNTRAINED = ("ptq", "analyze")  # tasks with no QAT of their own
WHOLE = 100.001  # percent, and what float32 may add to it
STAGES = {"float": "float", "ptq": "PTQ", "qat": "QAT", "int8": "int8"}  # key and title


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One row of the parity ladder; differences are in steps of the output's grid.

    Attributes:
        name: what computed it.
        top1: percent; None without labels.
        agreement: percent of examples with the class of the stage that all are compared with.
        max_steps: largest difference from it.
        mean_steps: mean difference from it.
        agreement_before: as `agreement`, with the stage before; None for the first.
        mean_steps_before: as `mean_steps`, from the stage before; None for the first.
    """

    name: str
    top1: float | None = None
    agreement: float
    max_steps: float
    mean_steps: float
    agreement_before: float | None = None
    mean_steps_before: float | None = None


@dataclass(frozen=True, kw_only=True)
class Cpu:
    """Where the run was measured."""

    name: str
    isa: tuple[str, ...]
    threads: int


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """What a runtime says that it executes: how many operators on integers, which in float, which of them between."""

    runtime: str
    integer: int
    in_float: tuple[str, ...] = ()
    islands: tuple[str, ...] = ()

    def __str__(self) -> str:
        """`41 operators on integers, 2 in float, 1 of them an island: Resize up1`."""
        many = len(self.islands)
        islands = f", {many} of them {'an island' if many == 1 else 'islands'}" if many else ""
        named = self.islands or self.in_float
        names = ", ".join(named[:3]) + (f" and {len(named) - 3} more" if len(named) > 3 else "")
        return f"{self.integer} operators on integers, {len(self.in_float)} in float{islands}" + (
            f": {names}" if named else ""
        )


@dataclass(frozen=True, kw_only=True)
class Results:
    """What a run found; units as the keys of `results.json` say them, shares and top-1 in percent.

    Attributes:
        model: class of the model.
        recipe: name of the recipe.
        target: name of the target.
        top1: by stage.
        agreement: of the artefact with the stage `base`.
        examples: validation images behind every share.
        size_bytes: of the files, `float` and `int8`.
        latency_ms: median of a call, `float` and `int8`.
        int8_mac_share: multiply-accumulates in integers, 0 to 1; None where the task does not say.
        passed: the parity gate.
        failures: what was outside of it, one sentence each.
        departure: the first layer that departs, when it failed.
        parity: the ladder.
        seed: of the run.
        cpu: that measured.
        versions: of the packages.
        task: what the run was for.
        base: the stage that the ladder compares with.
        output_step: size of one step of the output in logits; None for an output in float.
        notes: what the plan says about the run, such as weights of 7 bits.
        seconds: of every stage.
        coverage: what the runtime executes; None where it does not tell.
        latency_batch_size: images in a call.
        also: last stage of the ladder of each further target.
    """

    model: str
    recipe: str
    target: str
    top1: Mapping[str, float | None]
    agreement: float
    examples: int
    size_bytes: Mapping[str, int]
    latency_ms: Mapping[str, float]
    int8_mac_share: float | None
    passed: bool
    failures: tuple[str, ...]
    departure: str
    parity: tuple[Stage, ...]
    seed: int
    cpu: Cpu
    versions: Mapping[str, str]
    task: str = "qat"
    base: str = "fake-quant"
    output_step: float | None = 1.0
    notes: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    coverage: Coverage | None = None
    latency_batch_size: int | None = None
    also: Mapping[str, Stage] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse numbers that nothing can be computed of."""
        if self.examples < 1:
            raise ValueError(f"examples is {self.examples}, need 1 or more")
        shares = {"agreement": self.agreement, **{f"top1.{key}": value for key, value in self.top1.items()}}
        for key, value in shares.items():
            if value is not None and not 0.0 <= value <= WHOLE:
                raise ValueError(f"{key} is {value}, need 0 to 100")
        for name in ("size_bytes", "latency_ms"):
            for key, value in getattr(self, name).items():
                if not (math.isfinite(value) and value > 0):
                    raise ValueError(f"{name}.{key} is {value}, need more than 0")

    @property
    def stages(self) -> dict[str, float]:
        """top-1 of the stages that have one, in order; QAT is one where something was trained."""
        found = {key: self.top1.get(key) for key in STAGES if not (key == "qat" and self.task in UNTRAINED)}
        return {key: value for key, value in found.items() if value is not None}

    @property
    def compared(self) -> bool:
        """Whether there is an int8 file, with top-1, size and latency, for tables of many runs."""
        return self.top1.get("int8") is not None and "int8" in self.size_bytes and "int8" in self.latency_ms

    @property
    def columns(self) -> list[str]:
        """Titles of `stages`."""
        return [STAGES[key] for key in self.stages]

    @property
    def change(self) -> float | None:
        """top-1 of int8 less that of float, in points; None where one is missing."""
        return self.stages["int8"] - self.stages["float"] if {"int8", "float"} <= set(self.stages) else None

    @property
    def differs(self) -> Stage | None:
        """The first stage behind `base` whose output is not the same; None where all are."""
        names = [stage.name.startswith(self.base) for stage in self.parity]
        behind = self.parity[names.index(True) + 1 :] if True in names else ()
        return next((stage for stage in behind if stage.max_steps > 0), None)

    def ratio(self, name: str) -> float | None:
        """int8 / float of `size_bytes` or `latency_ms`; None where one is missing."""
        values = getattr(self, name)
        return values["int8"] / values["float"] if {"int8", "float"} <= set(values) else None

    def departs(self, stage: Stage) -> bool:
        """Whether the gate failed at a stage of the ladder."""
        return any(failure.startswith(f"{stage.name}: ") for failure in self.failures)


def read_results(run_dir: str | Path) -> dict[str, Any] | None:
    """What `results.json` of a run's folder holds; None where there is none.

    Raises:
        ReportError: it is damaged.
    """
    file = Path(run_dir) / FILE
    if not file.is_file():
        return None
    try:
        results = json.loads(file.read_text())
    except ValueError as error:
        raise ReportError(f"{file} is damaged: {error}. Run again, or remove it to see the rest") from error
    if not isinstance(results, dict):
        raise ReportError(f"{file} is damaged: it holds no results. Run again, or remove it to see the rest")
    return results


def parse_results(results: Mapping[str, Any]) -> Results:
    """What `results.json` holds, as values.

    Raises:
        ReportError: keys are missing, or have other values than this version writes.
    """
    try:
        return parse(Results, results)
    except ValueError as error:
        raise ReportError(f"{FILE} is of another version: {error}; run again for its numbers") from error
