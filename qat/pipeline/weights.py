"""`task=dynamic` and `task=weight_only`: float → integer weights → export → verify → card; no calibration, no training.

The reference of the parity table is the quantized model itself in torch: there is nothing fake about it.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import nn

import qat
from qat.artifact import Artifact
from qat.audit import DELIVERED, require_sound
from qat.data import ImageData
from qat.errors import ConfigError
from qat.files import write_text
from qat.inputs import Inputs, first_output
from qat.ladder import Run, ladder
from qat.parity import HINT, ParityReport
from qat.pipeline.baseline import float_baseline
from qat.pipeline.delivery import describe, measure_latency
from qat.pipeline.lifecycle import begun, circumstances, conclude, settle
from qat.pipeline.processes import joined
from qat.pipeline.reporting import classes, command_line, write_page
from qat.pipeline.results import covered
from qat.pipeline.source import read_source, with_preprocessing
from qat.pipeline.stopwatch import Stopwatch
from qat.pipeline.terminal import busy, follow
from qat.pipeline.trainer import measure_top1
from qat.pipeline.wanted import read_recipe, read_targets, read_tolerance
from qat.placement.plan import Plan
from qat.recorder import record_plan
from qat.runtime import load
from qat.settings import build
from qat.training.processes import by_first

log = logging.getLogger(__name__)
REFERENCE = "integer reference (torch)"
UNUSED = (
    "qat.",
    "quant.activation.",
    "quant.sum_bits",
    "quant.wide_residuals",
    "quant.weight.quantizer",
    "placement=",
    "leaf_modules=",
    "verify.in_float",
)
Quantize = Callable[..., nn.Module]


def dynamic(cfg: DictConfig) -> dict[str, Any]:
    """Integer weights, and activation ranges that are taken when the model runs."""
    return _quantized(cfg, qat.quantize_dynamic)


def weight_only(cfg: DictConfig) -> dict[str, Any]:
    """Integer weights, activations in float."""
    return _quantized(cfg, qat.quantize_weights)


def _quantized(cfg: DictConfig, quantize: Quantize) -> dict[str, Any]:
    with begun(cfg) as (folder, clock):
        recipe, targets = read_recipe(cfg), read_targets(cfg)
        if recipe.limits is not None:
            raise ConfigError(
                "quant.budget and quant.budget_mb are for static quantization: task=qat, ptq and analyze. "
                f"task={cfg.task} takes quant.weight.bits, and quant.override for single layers"
            )
        if len(targets) > 1:
            raise ConfigError(
                f"task={cfg.task} writes for one target, got {', '.join(t.name for t in targets)}; run it for each"
            )
        target, source = targets[0], read_source(cfg)
        cfg = with_preprocessing(cfg, source)
        tolerance = replace(read_tolerance(cfg), in_float=None)  # much is in float by intention
        say_unused(str(cfg.task))
        cfg = joined(cfg)
        folder = Path(cfg.run_dir)
        settle(cfg, folder)
        with clock("data"):
            data: ImageData = build(cfg, "data")
            data.setup()
        with clock("float"):
            baseline = float_baseline(cfg, source, data)
            top1 = measure_top1(cfg, baseline, data)
        log.info("float top-1 %.2f %%", top1)
        float_model = copy.deepcopy(baseline.model).cpu().eval()
        example = next(iter(data.val_dataloader()))[0][:2]

        def deliver() -> tuple[dict[str, Artifact], ParityReport, dict[str, float], Plan]:
            with clock("quantize"), busy(cfg, "quantizing"):
                model = quantize(float_model, example, recipe, target)
            plan: Plan = model.meta["prepared"]["plan"]  # type: ignore[index, assignment]
            write_text(folder / "plan.txt", str(plan))
            with clock("verify"):
                batches = follow(cfg, data.val_dataloader(), "measuring top-1")
                reached = ladder({REFERENCE: _in_torch(model)}, batches, base=REFERENCE).stages[0].top1
            about = describe(cfg, float_model, data, reached or 0.0)
            with clock("export"), busy(cfg, "exporting"):
                files = _files(model, float_model, example, folder, target, about)
            with clock("verify"):
                report = ladder(
                    _stages(float_model, model, files["int8"]),
                    follow(cfg, data.val_dataloader(), "verifying"), base=REFERENCE, free=("float",),
                    tolerance=tolerance, hint=HINT if cfg.task == "dynamic" else "",
                )  # fmt: skip
            with clock("latency"):
                latency_ms = measure_latency(cfg, files, example)
            return files, report, latency_ms, plan

        files, report, latency_ms, plan = by_first(deliver)
    results = _summary(cfg, plan, report, top1, latency_ms, files, clock)

    def end() -> None:
        conclude(results, folder)
        if cfg.report:
            as_float = baseline.cpu().eval()
            write_page(folder, lambda: record_plan(plan), lambda: classes(cfg, as_float, files["int8"], data, folder))
        log.info("everything this run wrote: %s", folder)
        report.require()

    by_first(end)
    return results


def say_unused(task: str) -> None:
    """Warn of keys on the command line that a task without calibration and training does not read."""
    given = [key for key in command_line() if key.lstrip("+~").startswith(UNUSED)]
    if given:
        log.warning(
            "task=%s calibrates and trains nothing, and its activations have no grid of their own: no effect of %s",
            task, ", ".join(given),
        )  # fmt: skip


def _files(
    model: nn.Module, float_model: nn.Module, example: Any, folder: Path, target: qat.Target, about: dict[str, str]
) -> dict[str, Artifact]:
    """The artefact, audited, beside the float model in its format; and the program in torch, its reference."""
    for suffix in dict.fromkeys((".pt2", target.artifact)):
        artifact = qat.export(model, folder / f"int8{suffix}", metadata=about)
        require_sound(artifact, runtime=load(artifact), example=example, require=DELIVERED)
    return {
        "float": qat.export(float_model, folder / f"float{target.artifact}", (example,)),
        "int8": artifact,
    }


def _in_torch(model: nn.Module) -> Run:
    return lambda x: first_output(x.call(model, "cpu"))


def _stages(float_model: nn.Module, model: nn.Module, artifact: Artifact) -> dict[str, Run]:
    stages = {"float": _in_torch(float_model), REFERENCE: _in_torch(model)}
    runtimes = [load(artifact, optimize=False)] if artifact.kind == ".onnx" else []
    for runtime in (*runtimes, load(artifact)):
        stages[runtime.name] = lambda x, runtime=runtime: runtime(*_ordered(x, artifact))  # type: ignore[misc]
    return stages


def _ordered(x: Inputs, artifact: Artifact) -> Any:
    return x.ordered(artifact.inputs)


def _summary(
    cfg: DictConfig,
    plan: Plan,
    report: ParityReport,
    top1: float,
    latency_ms: dict[str, float],
    files: dict[str, Artifact],
    clock: Stopwatch,
) -> dict[str, Any]:
    deployed = report.stages[-1]
    return {
        "model": plan.model,
        "recipe": plan.recipe,
        "target": plan.target,
        "top1": {"float": top1, "int8": deployed.top1},
        "agreement": deployed.agreement,
        "examples": report.examples,
        "size_bytes": {name: file.size_bytes for name, file in files.items()},
        "latency_ms": latency_ms,
        "int8_mac_share": plan.int8_mac_share if cfg.task == "dynamic" else None,
        "passed": report.passed,
        "failures": list(report.failures),
        "departure": report.departure,
        "parity": [asdict(stage) for stage in report.stages],
        "base": REFERENCE,
        "output_step": None,
        "coverage": covered(report, files["int8"]),
        "notes": list(plan.notes),
        **circumstances(cfg, clock),
        "sha256": {name: file.sha256 for name, file in files.items()},
    }
