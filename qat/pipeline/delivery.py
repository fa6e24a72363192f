"""What a run hands over: artefacts for every target, each audited, and how fast they are."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

import qat
from qat import machine
from qat.artifact import Artifact, fingerprint
from qat.audit import DELIVERED, require_sound
from qat.data import ImageData
from qat.data.preparation import preparation
from qat.pipeline.stopwatch import Stopwatch
from qat.pipeline.terminal import busy, follow
from qat.placement.prepared import PreparedModel
from qat.recorder import record_run
from qat.runtime import load
from qat.runtime.latency import interleaved
from qat.verify import ParityReport, Tolerance

log = logging.getLogger(__name__)


def describe(baseline: nn.Module, data: ImageData, top1: float) -> dict[str, str]:
    """What the artefact says about itself: where it comes from, and what its input is."""
    found = {
        "commit": record_run("").commit or "none: not run in a repository",
        "data": type(data).__name__,
        "top1": f"{top1:.2f}",
        "float_sha256": fingerprint(baseline),
        "versions": json.dumps(machine.versions()),
    }
    if (prepared := preparation(data)) is not None:
        found["preprocessing"] = json.dumps(prepared)
    return found


def export_all(
    cfg: DictConfig,
    prepared: PreparedModel,
    baseline: nn.Module,
    example: Tensor,
    folder: Path,
    target: qat.Target,
    clock: Stopwatch,
    about: dict[str, str],
) -> tuple[dict[str, Artifact], Artifact]:
    """The int8 artefacts by suffix, and the float model in the target's format to compare with."""
    with clock("convert"), busy(cfg, "converting"):
        integer = qat.convert(prepared)
    with clock("export"):
        suffixes = dict.fromkeys((".onnx", ".pt2", target.artifact))
        artifacts, float_path = {}, folder / f"float{target.artifact}"
        for path in follow(cfg, [*(folder / f"int8{suffix}" for suffix in suffixes), float_path], "exporting"):
            if path == float_path:
                float_file = qat.export(baseline.cpu().eval(), path, (example,))
                continue
            artifacts[path.suffix] = artifact = qat.export(integer, path, metadata=about)
            runtime = load(artifact) if artifact.kind == target.artifact else None
            require_sound(artifact, runtime=runtime, example=example, integer=integer, require=DELIVERED)
    return artifacts, float_file


def export_elsewhere(
    cfg: DictConfig,
    prepared: PreparedModel,
    targets: list[qat.Target],
    folder: Path,
    data: ImageData,
    tolerance: Tolerance,
    about: dict[str, str],
) -> dict[str, ParityReport]:
    """The same integers exported to each further target, with its parity."""
    integer, found = qat.convert(prepared) if targets else None, {}
    for target in targets:
        assert integer is not None
        path = folder / f"int8-{target.name}{target.artifact}"
        with busy(cfg, f"exporting for {target.name}"):
            artifact = qat.export(integer, path, target=target, metadata=about)
            example = next(iter(data.val_dataloader()))[0][:1]
            require_sound(artifact, runtime=load(artifact), example=example, integer=integer, require=DELIVERED)
        batches = follow(cfg, data.val_dataloader(), f"verifying {target.name}")
        found[target.name] = qat.verify(prepared, artifact, batches, tolerance=tolerance, strict=False)
        deployed = found[target.name].stages[-1]
        log.info("%s: agreement %.2f %%, at most %.1f steps", deployed.name, deployed.agreement, deployed.max_steps)
    return found


def measure_latency(cfg: DictConfig, files: Mapping[str, Artifact], example: Tensor) -> dict[str, float]:
    """Median milliseconds of a call of each file, by its name."""
    threads = torch.get_num_threads()
    runtimes = {name: load(file, threads=threads) for name, file in files.items()}
    shape = (cfg.latency.batch_size, *example.shape[1:])
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return interleaved(runtimes, x, repeats=cfg.latency.repeats)
