"""What a run hands over: artefacts for every target, each audited, and how fast they are."""

from __future__ import annotations

import hashlib
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
from qat.parity import ParityReport, Tolerance
from qat.pipeline.stopwatch import Stopwatch
from qat.pipeline.terminal import busy, follow
from qat.placement.prepared import PreparedModel
from qat.recorder import record_run
from qat.runtime import load
from qat.runtime.latency import interleaved
from qat.settings import plain

log = logging.getLogger(__name__)


def describe(cfg: DictConfig, baseline: nn.Module, data: ImageData, top1: float) -> dict[str, str]:
    """What the artefact says about itself: where it comes from, and what its input is.

    `float_sha256` is that of the checkpoint's file, as `sha256sum` prints it; of a float model that was trained here or
    published, it is that of its tensors (`qat.artifact.fingerprint`).
    """
    found = {
        "commit": record_run("").commit or "none: not run in a repository",
        "data": _spelled(cfg, data),
        "top1": f"{top1:.2f}",
        "float_sha256": _sha256(cfg.init_from) or fingerprint(baseline),
        "versions": json.dumps(machine.versions()),
    }
    if (prepared := preparation(data)) is not None:
        found["preprocessing"] = json.dumps(prepared)
    return found


def _spelled(cfg: DictConfig, data: ImageData) -> str:
    """`HuggingFaceData(path=cifar10)`: the class with what was said in words; of a path its last part."""
    said = {k: Path(v).name for k, v in plain(cfg, "data").items() if isinstance(v, str) and k != "_target_"}
    return f"{type(data).__name__}({', '.join(f'{k}={v}' for k, v in said.items())})"


def _sha256(file: str | None) -> str:
    """Digest of a file's content; empty for none."""
    if file is None or not Path(file).is_file():
        return ""
    with Path(file).open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


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
            require_sound(artifact, runtime=load(artifact), example=example, integer=integer, require=DELIVERED)
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
        say_saturation(found[target.name], target)
        deployed = found[target.name].stages[-1]
        log.info("%s: agreement %.2f %%, at most %.1f steps", deployed.name, deployed.agreement, deployed.max_steps)
    return found


def say_saturation(report: ParityReport, target: qat.Target) -> None:
    """Where the CPU's sums saturate: by how much the artefact is off, as was announced before training."""
    if target.needs_vnni and target.weight_bits > 7 and machine.saturation(target.name, machine.cpu()):
        deployed = report.stages[-1]
        log.warning(
            "sums saturate here: %s agrees on %.2f %%, off by %.2f steps in the mean and %.1f at most; on a CPU with "
            "VNNI it would not be", deployed.name, deployed.agreement, deployed.mean_steps, deployed.max_steps,
        )  # fmt: skip


def measure_latency(cfg: DictConfig, files: Mapping[str, Artifact], example: Tensor) -> dict[str, float]:
    """Median milliseconds of a call of each file, by its name."""
    threads = torch.get_num_threads()
    runtimes = {name: load(file, threads=threads) for name, file in files.items()}
    shape = (cfg.latency.batch_size, *example.shape[1:])
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return interleaved(runtimes, x, repeats=cfg.latency.repeats)
