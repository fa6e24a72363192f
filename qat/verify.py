"""The parity gate: does the artefact, in its runtime, behave like the model that was trained?

    float | prepared, fake-quant off | fake-quant | integer reference | runtime, optimizations off | runtime, default

Every stage sees the same batches and is compared with the fake-quant model. What may differ, and why anything may at
all: integers are exact, but the sums between them are floats, and a value that lies within a rounding error of the
middle between two integers may fall to either side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from qat import machine
from qat.artifact import Artifact, fingerprint
from qat.calibrate import labels_of
from qat.convert import OPS, convert
from qat.errors import ArtifactError, DataError, NumericsError, ParityError
from qat.inputs import Inputs
from qat.layers import pruned
from qat.placement.prepared import PreparedModel, device_of, plain_copy, quantizers
from qat.runtime import Runtime, load
from qat.runtime.coverage import Coverage
from qat.switches import fake_quant

HINT = "verify(..., layerwise=True) shows every value, docs/howto/parity.md what the first stage that departs means"
ONCE_HINT = (
    "OpenVINO rounds a convolution and the sum behind it once, and this model was trained to round twice: "
    "train it for target=openvino"
)
VNNI_HINT = "On a CPU without VNNI, 8-bit weights saturate: use a target whose weights have 7 bits, such as onnxruntime"
SATURATES = ("onnxruntime", "openvino", "inductor")  # XNNPACK and torch add in 32 bits on any CPU
DEPARTED = 0.01  # a layer departs when more than this share of its integers is off by more than one step


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


FAKE_QUANT = "fake-quant"


@dataclass
class Tally:
    """What is counted of a stage, batch by batch."""

    name: str
    gated: bool
    correct: int = 0
    agree: int = 0
    max_steps: float = 0.0
    sum_steps: float = 0.0
    values: int = field(default=0)
    agree_before: int = 0
    sum_before: float = 0.0
    follows: bool = False  # another stage

    def add(
        self, output: Tensor, base: Tensor, labels: Tensor | None, step: float, before: Tensor | None = None
    ) -> None:
        """Count one batch: outputs `[N, classes]` of this stage, of the one it is compared with, and the one before."""
        if not torch.isfinite(output).all():
            raise NumericsError(f"NaN or Inf in the output of stage {self.name!r}; compare layer by layer from there")
        steps = (output - base).abs().div(step)
        self.agree += int((output.argmax(1) == base.argmax(1)).sum())
        self.correct += int((output.argmax(1) == labels.cpu()).sum()) if labels is not None else 0
        self.max_steps = max(self.max_steps, float(steps.max()))
        self.sum_steps += float(steps.sum())
        self.values += steps.numel()
        if before is not None:
            self.follows = True
            self.agree_before += int((output.argmax(1) == before.argmax(1)).sum())
            self.sum_before += float((output - before).abs().div(step).sum())

    def stage(self, examples: int, labelled: bool) -> Stage:
        """The finished column."""
        return Stage(
            name=self.name,
            top1=100.0 * self.correct / examples if labelled else None,
            agreement=100.0 * self.agree / examples,
            max_steps=self.max_steps,
            mean_steps=self.sum_steps / self.values,
            gated=self.gated,
            agreement_before=100.0 * self.agree_before / examples if self.follows else None,
            mean_steps_before=self.sum_before / self.values if self.follows else None,
        )


@torch.no_grad()
def verify(
    prepared: PreparedModel,
    artifact: Artifact,
    batches: Iterable[Any],
    *,
    float_model: nn.Module | None = None,
    tolerance: Tolerance | None = None,
    strict: bool = True,
    layerwise: bool = False,
    runtimes: Sequence[Runtime] = (),
) -> ParityReport:
    """The parity table of an artefact, and its gate.

    Args:
        prepared: the trained fake-quant model; its mode and switches are as before afterwards.
        artifact: from `qat.export`.
        batches: inputs `[N, ...]`, alone or with labels `[N]`, several of them or by keyword, as `qat.inputs` lists.
        float_model: the float baseline, for the first column.
        tolerance: how far stages may be apart.
        strict: raise when outside the tolerance; False only reports.
        layerwise: compare every intermediate value as well, over the batch with the largest differences.
        runtimes: further ones that have loaded the artefact, each a stage of its own: TensorRT's engine, say.

    Raises:
        ParityError: outside the tolerance.
        ArtifactError: the runtime refuses or fails; the artefact is of another model.
        DataError: no batch.
    """
    tolerance = tolerance or Tolerance()
    integer = convert(prepared)
    _require_same(artifact, integer)
    step = output_step(integer)
    runtime = load(artifact)
    stages, base = _stages(prepared, artifact, integer, float_model, [*runtimes, runtime])
    tallies = {name: Tally(name, gated) for name, (_, gated) in stages.items()}
    examples, labelled = 0, True
    worst: tuple[float, Inputs | None] = (0.0, None)
    with _evaluating(prepared):
        for batch in batches:
            x, labels = Inputs.of(batch), labels_of(batch)
            reference = base(x)
            before = sum(t.sum_steps for t in tallies.values())
            previous = None
            for name, (run, _) in stages.items():
                output = run(x)
                tallies[name].add(output, reference, labels, step or 1.0, previous)
                previous = output
            worst = max(worst, (sum(t.sum_steps for t in tallies.values()) - before, x), key=lambda w: w[0])
            examples += len(x)
            labelled &= labels is not None
    if not examples:
        raise DataError("verification saw no batch; pass the validation split, e.g. its DataLoader")
    report = ParityReport(
        stages=tuple(t.stage(examples, labelled) for t in tallies.values()),
        examples=examples,
        step=step,
        tolerance=tolerance,
        hint=_hint(artifact, integer),
        coverage=runtime.coverage() if tolerance.in_float is not None else None,
    )
    if worst[1] is not None and (layerwise or not report.passed):
        layers = compare_layers(prepared, artifact, *worst[1].ordered(artifact.inputs))
        departure = "" if report.passed else _first_departure(layers)
        report = replace(report, departure=departure, layers=layers if layerwise else ())
    return report.require() if strict else report


Run = Callable[[Inputs], Tensor]


def _stages(
    prepared: PreparedModel,
    artifact: Artifact,
    integer: fx.GraphModule,
    float_model: nn.Module | None,
    runtimes: Sequence[Runtime],
) -> tuple[dict[str, tuple[Run, bool]], Run]:
    device = device_of(prepared)

    def on_device(model: nn.Module) -> Run:
        return lambda x: first_output(x.call(model, device)).float().cpu()

    def in_runtime(runtime: Runtime) -> Run:
        return lambda x: runtime(*x.ordered(artifact.inputs))

    def switched_off(x: Inputs) -> Tensor:
        fake_quant(prepared, enabled=False)
        try:
            return on_device(prepared)(x)
        finally:
            fake_quant(prepared, enabled=True)

    base = on_device(prepared)
    stages: dict[str, tuple[Run, bool]] = {}
    if float_model is not None:
        stages["float"] = (on_device(pruned.copied(float_model, masks=False).to(device).eval()), False)
    stages["prepared, fake-quant off"] = (switched_off, False)
    stages[FAKE_QUANT] = (base, False)
    stages["integer reference (torch)"] = (on_device(integer), True)
    off = [load(artifact, optimize=False)] if artifact.kind == ".onnx" else []
    for runtime in (*off, *runtimes):
        stages[runtime.name] = (in_runtime(runtime), True)
    return stages, base


@contextmanager
def _evaluating(prepared: PreparedModel) -> Iterator[None]:
    modes = {module: module.training for module in prepared.modules()}
    enabled = {q: q.enabled for q in quantizers(prepared).values()}
    prepared.eval()
    fake_quant(prepared, enabled=True)
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for quantizer, was in enabled.items():
            quantizer.enabled = was


def first_output(result: Any) -> Tensor:
    """The tensor that a classifier means: itself, or the first element or value of what it returned."""
    if isinstance(result, Tensor):
        return result
    values = result.values() if isinstance(result, dict) else result
    return cast(Tensor, next(iter(values)))


def output_step(integer: fx.GraphModule) -> float | None:
    """Size of one step of the output's grid; None when the output is in float."""
    if not isinstance(integer, fx.GraphModule):  # prepared by modules
        return None
    output = next(n for n in integer.graph.nodes if n.op == "output")
    last = output.all_input_nodes[0]
    return float(last.args[1]) if last.target is OPS.dequantize_per_tensor.default else None


class _Recorder(fx.Interpreter):
    def __init__(self, prepared: PreparedModel, names: Iterable[str]) -> None:
        super().__init__(fx.GraphModule(prepared, plain_copy(prepared.graphs[False])))
        self.names, self.seen = set(names), dict[str, Tensor]()

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self.names:
            self.seen[n.name] = value
        return value


def first_departure(prepared: PreparedModel, artifact: Artifact, *x: Tensor) -> str:
    """The first value whose integers differ between fake-quant model and artefact, with how much; empty if none does.

    Args:
        prepared: the fake-quant model.
        artifact: an artefact of it whose runtime shows intermediate values; for others the answer is empty.
        x: one batch, each input of it in the artefact's order.
    """
    return _first_departure(compare_layers(prepared, artifact, *x))


@torch.no_grad()
def compare_layers(prepared: PreparedModel, artifact: Artifact, *x: Tensor) -> tuple[Layer, ...]:
    """Every value that the artefact's runtime shows, beside the fake-quant model's, in the order of the graph.

    Args:
        prepared: the fake-quant model.
        artifact: an artefact of it.
        x: one batch, each input of it in the artefact's order.
    """
    if not artifact.sites:  # nothing is shown: a runtime without names, or a model prepared by modules
        return ()
    grids = _grids(convert(prepared), artifact.sites)
    with _evaluating(prepared):
        recorder = _Recorder(prepared, artifact.sites)
        recorder.run(*(one.to(device_of(prepared)) for one in x))
    found = []
    for site, integers in load(artifact).intermediates(*x).items():
        scale, zero = grids[site]
        mine = (recorder.seen[site].float().cpu() / scale).round() + zero
        difference = (mine - integers.float().reshape(mine.shape)).abs()  # linear layers are stored as rows
        off, departed = (float((difference > limit).float().mean()) for limit in (0, 1))
        found.append(Layer(site=site, max_steps=int(difference.max()), off=off, departed=departed))
    return tuple(found)


def _first_departure(layers: tuple[Layer, ...]) -> str:
    for layer in layers:
        if layer.departed > DEPARTED:
            return f"{layer.site} ({100 * layer.departed:.1f} % of its integers are off by more than one step)"
    return ""


def _require_same(artifact: Artifact, integer: fx.GraphModule) -> None:
    sites = integer.meta["prepared"]["sites"]
    if artifact.sites != sites:
        raise ArtifactError(
            f"{artifact.path.name} is of another model: it stores {len(artifact.sites)} values as integers, beginning "
            f"{', '.join(artifact.sites[:3]) or 'with none'}; this model stores {len(sites)}, beginning "
            f"{', '.join(sites[:3])}. Verify the model that was exported"
        )


def _hint(artifact: Artifact, integer: fx.GraphModule) -> str:
    said = artifact.metadata.get("fingerprint", "")
    if said and said != fingerprint(integer):
        return "The artefact was exported from other weights or ranges than the model has now: export it again"
    target = artifact.target
    if target is not None and target.weight_bits > 7 and target.runtime in SATURATES:
        trained = integer.meta["prepared"]["target"]
        if trained.weight_bits > 7 and machine.saturation(target.name, machine.cpu()):
            return VNNI_HINT
    if target is not None and target.sums_round_once and not integer.meta["prepared"]["target"].sums_round_once:
        return ONCE_HINT
    return HINT


def _grids(integer: fx.GraphModule, sites: tuple[str, ...]) -> dict[str, tuple[float, int]]:
    quantized = [n for n in integer.graph.nodes if n.target is OPS.quantize_per_tensor.default]
    return {site: (float(n.args[1]), int(n.args[2])) for site, n in zip(sites, quantized, strict=True)}
