"""What a run leaves for its report: plain values in `record/*.json`, with the version of their form.

    record/run.json        command, commit, date
    record/layers.json     one entry per operator: grids, histograms, noise, cost
    record/float.json      curves of float training, when there was any
    record/qat.json        curves of quantization-aware training
    record/classes.json    what quantization changed, by class and by image
    record/images/*.png    the images of it

A file of an older version is read as far as it goes: what is not in it takes its default.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from qat.errors import ReportError
from qat.files import write_text
from qat.report.form import parse

VERSION = 1
FOLDER = "record"
DIGITS = 5  # significant ones: more than a chart can show
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Values:
    """A tensor before its quantizer, over the recorded examples.

    Attributes:
        low: left end of the histogram.
        high: right end of the histogram.
        counts: values in each of equally wide bins.
        grid: the grid in words.
        bits: its width.
        grid_low: the lowest value that the grid can say; per channel, of the widest channel.
        grid_high: the highest one.
        clipped: share of values beyond the grid, 0 to 1.
        snr: signal over quantization noise of this tensor alone, dB.
    """

    low: float
    high: float
    counts: tuple[int, ...]
    grid: str
    bits: int
    grid_low: float
    grid_high: float
    clipped: float
    snr: float


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One operator of the plan, in the order of the graph.

    Attributes:
        name: as in `plan.txt`.
        kind: what it computes.
        integer: whether the runtime runs it on integers.
        why: reason for float, or a remark.
        fused: what runs inside it.
        inputs: names of the operators that it reads.
        macs: multiply-accumulates for one example.
        bytes: of its parameters, as the artefact stores them.
        ms: measured in the runtime; None where the runtime does not tell.
        weight: its weight, when quantized.
        activation: its result, when quantized.
        snr: signal over all quantization noise that has gathered in its result, dB.
        quantizers: paths of its quantizers, as the curves name them.
    """

    name: str
    kind: str
    integer: bool
    why: str = ""
    fused: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    macs: int = 0
    bytes: int = 0
    ms: float | None = None
    weight: Values | None = None
    activation: Values | None = None
    snr: float | None = None
    quantizers: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Layers:
    """All operators.

    Attributes:
        layers: in the order of the graph.
        examples: how many examples the statistics are over.
        ms_other: measured time that belongs to no operator: changes of layout, quantizing the input.
    """

    layers: tuple[Layer, ...]
    examples: int = 0
    ms_other: float | None = None


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A stretch of training.

    Attributes:
        name: as the log names it.
        start: first optimizer step.
        end: the step after its last.
    """

    name: str
    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Training:
    """The curves of one training, all by optimizer step.

    Attributes:
        epochs: planned.
        steps: where `loss`, `lr` were taken.
        loss: of training batches.
        lr: of the first parameter group.
        val_steps: where validation ran.
        val_loss: there.
        val_top1: there, percent.
        phases: of the schedule.
        range_steps: where `scales` and `oscillating` were taken.
        scales: mean scale of every quantizer.
        oscillating: share of weights that oscillate, by weight quantizer, 0 to 1.
        trained: quantizers whose scale gradients move.
    """

    epochs: int = 0
    steps: tuple[int, ...] = ()
    loss: tuple[float, ...] = ()
    lr: tuple[float, ...] = ()
    val_steps: tuple[int, ...] = ()
    val_loss: tuple[float, ...] = ()
    val_top1: tuple[float, ...] = ()
    phases: tuple[Phase, ...] = ()
    range_steps: tuple[int, ...] = ()
    scales: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    oscillating: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    trained: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse curves that have no value for each of their steps."""
        for steps, names in (("steps", ("loss", "lr")), ("val_steps", ("val_loss", "val_top1"))):
            for name in names:
                if (found := len(getattr(self, name))) != (wanted := len(getattr(self, steps))):
                    raise ValueError(f"{name} has {found} points, and {steps} {wanted}")
        for name, curves in (("scales", self.scales), ("oscillating", self.oscillating)):
            if long := [path for path, values in curves.items() if len(values) > len(self.range_steps)]:
                raise ValueError(f"{name} of {long[0]} has more points than range_steps")


@dataclass(frozen=True, kw_only=True)
class ClassCount:
    """One class over the recorded examples: how many, and how many each model gets right."""

    name: str
    count: int
    float_correct: int
    int8_correct: int


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """One cell of the confusion matrix that quantization changed."""

    label: str
    predicted: str
    float_count: int
    int8_count: int


@dataclass(frozen=True, kw_only=True)
class Disagreement:
    """An image on which float and int8 disagree.

    Attributes:
        file: below the run folder.
        label: its class.
        float_class: what the float model says, with its probability in `float_p`.
        int8_class: what the artefact says, with its probability in `int8_p`.
    """

    file: str
    label: str
    float_class: str
    float_p: float
    int8_class: str
    int8_p: float


@dataclass(frozen=True, kw_only=True)
class Classes:
    """What quantization changed.

    Attributes:
        examples: how many validation images were compared.
        disagreements: on how many of them float and int8 say different classes.
        classes: all of them.
        confusion: the cells that changed.
        images: the disagreements that both models are surest of.
    """

    examples: int
    disagreements: int = 0
    classes: tuple[ClassCount, ...] = ()
    confusion: tuple[Confusion, ...] = ()
    images: tuple[Disagreement, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Run:
    """Where the run comes from.

    Attributes:
        command: to run it again.
        commit: of the code; empty outside a repository.
        changed: whether files differed from that commit.
        created: date and time, ISO 8601.
    """

    command: str = ""
    commit: str = ""
    changed: bool = False
    created: str = ""


FORMS: dict[type, str] = {Run: "run", Layers: "layers", Classes: "classes"}


def write(run_dir: str | Path, record: Any, name: str | None = None) -> Path:
    """Write a record into a run's folder; `name` tells apart records of one form, such as `float` and `qat`."""
    path = Path(run_dir) / FOLDER / f"{name or FORMS[type(record)]}.json"
    text = json.dumps({"version": VERSION, **_rounded(asdict(record))}, separators=(",", ":"))
    return write_text(path, text + "\n")


def read(run_dir: str | Path, form: type[R], name: str | None = None) -> R | None:
    """A record of a run's folder; None when it has none.

    Raises:
        ReportError: the file is damaged, or of a later version.
    """
    path = Path(run_dir) / FOLDER / f"{name or FORMS[form]}.json"
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text())
        if found.get("version", 0) > VERSION:
            raise ReportError(
                f"{path} is of version {found['version']}, and this package reads up to {VERSION}; update qat"
            )
        return parse(form, found, null=math.nan)
    except (ValueError, AttributeError) as error:  # AttributeError: a list where an object belongs
        raise ReportError(f"{path} is damaged: {error}. Remove it, and the report does without") from error


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value
