"""What `results.json` holds."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from omegaconf import DictConfig

from qat.artifact import Artifact
from qat.parity import ParityReport
from qat.pipeline.lifecycle import circumstances
from qat.pipeline.stopwatch import Stopwatch
from qat.placement.prepared import PreparedModel, quantizers
from qat.runtime import load


def mean_bits(prepared: PreparedModel) -> dict[str, float]:
    """Of all integer weights and of all activations, each by its size; empty for a model without a graph."""
    found, bits = quantizers(prepared), {}
    for which in dict.fromkeys(unit.tensor for unit in prepared.units):
        units = [unit for unit in prepared.units if unit.tensor == which]
        total = sum(unit.size * found[unit.quantizer].spec.bits for unit in units)
        bits[which] = total / sum(unit.size for unit in units)
    return bits


def summarize(
    cfg: DictConfig,
    prepared: PreparedModel,
    report: ParityReport,
    top1: dict[str, float],
    latency_ms: dict[str, float],
    int8_file: Artifact,
    float_file: Artifact,
    clock: Stopwatch,
) -> dict[str, Any]:
    """One run in plain values, as JSON takes them."""
    deployed = report.stages[-1]
    return {
        "model": prepared.plan.model,
        "recipe": prepared.recipe.name,
        "target": prepared.target.name,
        "top1": {**top1, "int8": deployed.top1},
        "agreement": deployed.agreement,
        "examples": report.examples,
        "size_bytes": {"float": float_file.size_bytes, "int8": int8_file.size_bytes},
        "latency_ms": latency_ms,
        "int8_mac_share": prepared.plan.int8_mac_share,
        "mean_bits": mean_bits(prepared),
        "passed": report.passed,
        "failures": list(report.failures),
        "departure": report.departure,
        "parity": [asdict(stage) for stage in report.stages],
        "output_step": report.step,
        "coverage": covered(report, int8_file),
        "notes": list(prepared.plan.notes),
        **circumstances(cfg, clock),
        "sha256": {"int8": int8_file.sha256, "float": float_file.sha256},
    }


def covered(report: ParityReport, artifact: Artifact) -> dict[str, Any] | None:
    """What the runtime says that it executes of an artefact; None where it does not tell."""
    coverage = report.coverage or load(artifact).coverage()
    if coverage is None:
        return None
    return {
        "runtime": coverage.runtime,
        "integer": len(coverage.integer),
        "in_float": [str(operator) for operator in coverage.in_float],
        "islands": [str(operator) for operator in coverage.islands],
        "delegates": coverage.delegates,
    }
