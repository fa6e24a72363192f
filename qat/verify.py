"""The parity gate: does the artefact, in its runtime, behave like the model that was trained?

    float | prepared, fake-quant off | fake-quant | integer reference | runtime, optimizations off | runtime, default

Every stage sees the same batches and is compared with the fake-quant model. What may differ, and why anything may at
all: integers are exact, but the sums between them are floats, and a value that lies within a rounding error of the
middle between two integers may fall to either side.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from qat import machine
from qat.artifact import Artifact, fingerprint
from qat.convert import OPS, convert
from qat.departure import compare_layers, first_departure
from qat.errors import ArtifactError
from qat.inputs import Inputs, first_output
from qat.ladder import Run, compare
from qat.layers import pruned
from qat.parity import HINT, ParityReport, Tolerance
from qat.placement.flat import feed
from qat.placement.prepared import PreparedModel, device_of
from qat.runtime import Runtime, load
from qat.switches import as_deployed, fake_quant

FAKE_QUANT, SWITCHED_OFF = "fake-quant", "prepared, fake-quant off"
ONCE_HINT = (
    "OpenVINO rounds a convolution and the sum behind it once, and this model was trained to round twice: "
    "train it for target=openvino"
)
VNNI_HINT = "On a CPU without VNNI, 8-bit weights saturate: use a target whose weights have 7 bits, such as onnxruntime"
SATURATES = ("onnxruntime", "openvino", "inductor")  # XNNPACK and torch add in 32 bits on any CPU


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
        ConfigError: `artifact` is no `Artifact`, a path say.
    """
    tolerance = tolerance or Tolerance()
    runtime = load(artifact)
    integer = convert(prepared)
    _require_same(artifact, integer)
    step = output_step(integer)
    stages = _stages(prepared, artifact, integer, float_model, [*runtimes, runtime])
    with as_deployed(prepared):
        compared = compare(stages, batches, base=FAKE_QUANT, free=("float", SWITCHED_OFF), step=step or 1.0)
    report = ParityReport(
        stages=compared.stages,
        examples=compared.examples,
        step=step,
        tolerance=tolerance,
        hint=_hint(artifact, integer),
        coverage=runtime.coverage() if tolerance.in_float is not None else None,
    )
    if compared.worst is not None and (layerwise or not report.passed):
        layers = compare_layers(prepared, artifact, compared.worst)
        departure = "" if report.passed else first_departure(layers)
        report = replace(report, departure=departure, layers=layers if layerwise else ())
    return report.require() if strict else report


def _stages(
    prepared: PreparedModel,
    artifact: Artifact,
    integer: fx.GraphModule,
    float_model: nn.Module | None,
    runtimes: Sequence[Runtime],
) -> dict[str, Run]:
    device = device_of(prepared)

    def in_torch(model: nn.Module) -> Run:
        return lambda x: first_output(x.call(model, device)).float().cpu()

    def in_integers(x: Inputs) -> Tensor:
        return in_torch(integer)(Inputs(*prepared.fixed_arguments.left(x.args, x.kwargs)))

    def in_runtime(runtime: Runtime) -> Run:
        return lambda x: runtime(*feed(prepared, x, artifact.inputs))

    def switched_off(x: Inputs) -> Tensor:
        fake_quant(prepared, enabled=False)
        try:
            return in_torch(prepared)(x)
        finally:
            fake_quant(prepared, enabled=True)

    stages: dict[str, Run] = {}
    if float_model is not None:
        stages["float"] = in_torch(pruned.copied(float_model, masks=False).to(device).eval())
    stages[SWITCHED_OFF] = switched_off
    stages[FAKE_QUANT] = in_torch(prepared)
    stages["integer reference (torch)"] = in_integers
    off = [load(artifact, optimize=False)] if artifact.kind == ".onnx" else []
    return stages | {runtime.name: in_runtime(runtime) for runtime in (*off, *runtimes)}


def output_step(integer: fx.GraphModule) -> float | None:
    """Size of one step of the output's grid; None when the output is in float."""
    if not isinstance(integer, fx.GraphModule):  # prepared by modules
        return None
    output = next(n for n in integer.graph.nodes if n.op == "output")
    last = output.all_input_nodes[0]
    return float(last.args[1]) if last.target is OPS.dequantize_per_tensor.default else None


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
    openvino = target is not None and target.runtime == "openvino"  # leaves the rounding out; others compute it
    if openvino and not integer.meta["prepared"]["target"].sums_round_once:
        return ONCE_HINT
    return HINT
