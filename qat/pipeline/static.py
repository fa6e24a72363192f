"""float → prepare → calibrate → train → convert → export → verify → card: static quantization, trained or not."""

from __future__ import annotations

import copy
import logging
from dataclasses import asdict, dataclass
from typing import Any

from omegaconf import DictConfig
from torch import Tensor, nn

import qat
from qat.artifact import Artifact
from qat.data import ImageData
from qat.files import write_text
from qat.parity import ParityReport
from qat.pipeline.aids import OF_TRAINING
from qat.pipeline.baseline import float_baseline
from qat.pipeline.calibration import calibrated
from qat.pipeline.classifier import build_classifier
from qat.pipeline.delivery import describe, export_all, export_elsewhere, measure_latency, say_saturation
from qat.pipeline.job import Job, read_job
from qat.pipeline.lifecycle import begun, conclude, settle
from qat.pipeline.reporting import classes, command_line, operators, write_page
from qat.pipeline.results import summarize
from qat.pipeline.terminal import follow
from qat.pipeline.trainer import fit, measure_top1
from qat.placement.prepared import PreparedModel
from qat.settings import build
from qat.training import Classifier
from qat.training.processes import by_first
from qat.training.trial import require_exportable

log = logging.getLogger(__name__)


def ptq(cfg: DictConfig) -> dict[str, Any]:
    """Post-training quantization: `static` without its training."""
    cfg = cfg.copy()
    cfg.qat.epochs = 0
    if any(given.startswith("qat.epochs=") and given != "qat.epochs=0" for given in command_line()):
        log.warning("qat.epochs has no effect on task=ptq, which trains nothing; leave task out to train")
    return static(cfg)


def analyze(cfg: DictConfig) -> dict[str, Any]:
    """What each tensor costs, and `ptq` with the widths that follow."""
    cfg = cfg.copy()
    cfg.qat.epochs = 0
    given = {key.partition("=")[0] for key in command_line()}
    for key in ("epochs", *OF_TRAINING):
        if f"qat.{key}" in given:
            log.warning("qat.%s has no effect on task=analyze, which trains nothing", key)
    cfg.qat.update(OF_TRAINING)  # so that an experiment's training can be analyzed
    return static(cfg)


@dataclass(frozen=True, kw_only=True)
class Delivered:
    """What a run hands over.

    Attributes:
        int8: the artefact for the first target.
        as_float: the float model in the same format.
        report: parity of the artefact.
        others: parity of the artefact of each further target, by its name.
        latency_ms: median of a call, by `float` and `int8`.
    """

    int8: Artifact
    as_float: Artifact
    report: ParityReport
    others: dict[str, ParityReport]
    latency_ms: dict[str, float]


def static(cfg: DictConfig) -> dict[str, Any]:
    """Quantization with ranges that are known before the model runs; trained, if `qat.epochs` is not 0."""
    with begun(cfg) as (_, clock):
        job, top1 = read_job(cfg, clock), dict[str, float]()
        settle(job.cfg, job.folder)
        data = _load_data(job)
        baseline, top1["float"] = _load_float(job, data)
        example = next(iter(data.calibration_dataloader()))[0][:2]
        model = job.helpers.before(copy.deepcopy(baseline.model), example)
        if job.analysis is not None:
            with job.clock("analyze"):
                job = job.with_recipe(job.analysis.recipe(job.cfg, model, data, job.folder))
        module = _prepare(job, model, baseline, data, example)
        top1["ptq"] = top1["qat"] = _calibrate(job, module, data)
        if job.trains:
            top1["qat"] = _train(job, module, data)
        prepared = _prepared(module).cpu()
        delivered = by_first(lambda: _deliver(job, prepared, baseline, data, example, top1["qat"]))
    results = _results(job, prepared, delivered, top1)
    by_first(lambda: _end(job, prepared, baseline, delivered, data, results))
    return results


def _load_data(job: Job) -> ImageData:
    with job.clock("data"):
        data: ImageData = build(job.cfg, "data")
        data.setup()
    return data


def _load_float(job: Job, data: ImageData) -> tuple[Classifier, float]:
    """The float model, trained where the config says so, and its top-1."""
    with job.clock("float"):
        baseline = float_baseline(job.cfg, job.source, data)
        top1 = measure_top1(job.cfg, baseline, data)
    log.info("float top-1 %.2f %%", top1)
    return baseline, top1


def _prepare(job: Job, model: nn.Module, baseline: Classifier, data: ImageData, example: Tensor) -> Classifier:
    """The module that holds the fake-quant model; its plan is in the folder."""
    module = build_classifier(job.cfg, "qat", model, data, distill=job.distill, teacher=baseline.model)
    with job.clock("prepare"):
        job.callback.prepare(module, (example,))
        if job.distill is not None and job.distill.features:
            module.learn_features()  # names that nothing has end the run here
    write_text(job.folder / "plan.txt", str(_prepared(module).plan))
    return module


def _calibrate(job: Job, module: Classifier, data: ImageData) -> float:
    """Ranges from data, or all that a checkpoint has; the top-1 of post-training quantization."""
    with job.clock("calibrate"):
        top1 = calibrated(job.cfg, job.callback, job.helpers, module, data, job.checkpoint)
    log.info("PTQ top-1 %.2f %%", top1)
    return top1


def _train(job: Job, module: Classifier, data: ImageData) -> float:
    """Quantization-aware training, from where it was interrupted; its top-1."""
    cfg, prepared = job.cfg, _prepared(module)
    if cfg.qat.try_export:
        with job.clock("try_export"):
            by_first(lambda: require_exportable(prepared, job.target))
    with job.clock("qat"):
        fit(cfg, "qat", module, data, job.folder, job.callback, *job.aids, ckpt_path=job.checkpoint)
        top1 = measure_top1(cfg, module, data)
    log.info("QAT top-1 %.2f %%", top1)
    return top1


def _deliver(
    job: Job, prepared: PreparedModel, baseline: Classifier, data: ImageData, example: Tensor, top1: float
) -> Delivered:
    """Artefacts for every target, each compared with the model, and how fast they are."""
    cfg, target = job.cfg, job.target
    about = describe(cfg, baseline.model, data, top1)
    artifacts, as_float = export_all(cfg, prepared, baseline.model, example, job.folder, target, job.clock, about)
    int8 = artifacts[target.artifact]
    with job.clock("verify"):
        report = qat.verify(
            prepared, int8, follow(cfg, data.val_dataloader(), "verifying"),
            float_model=baseline.model, tolerance=job.tolerance, strict=False,
        )  # fmt: skip
        say_saturation(report, target)
        others = export_elsewhere(cfg, prepared, job.targets[1:], job.folder, data, job.tolerance, about)
    with job.clock("latency"):
        latency_ms = measure_latency(cfg, {"float": as_float, "int8": int8}, example)
    return Delivered(int8=int8, as_float=as_float, report=report, others=others, latency_ms=latency_ms)


def _results(job: Job, prepared: PreparedModel, found: Delivered, top1: dict[str, float]) -> dict[str, Any]:
    results = summarize(job.cfg, prepared, found.report, top1, found.latency_ms, found.int8, found.as_float, job.clock)
    results["also"] = {name: asdict(other.stages[-1]) for name, other in found.others.items()}
    return results


def _end(
    job: Job, prepared: PreparedModel, baseline: Classifier, found: Delivered, data: ImageData, results: dict[str, Any]
) -> None:
    """Results, card and page; then the gate."""
    conclude(results, job.folder)
    if job.cfg.report:
        cfg, folder, as_float = job.cfg, job.folder, baseline.cpu().eval()
        write_page(
            folder,
            lambda: operators(cfg, prepared, found.int8, data),
            lambda: classes(cfg, as_float, found.int8, data, folder),
        )
    log.info("everything this run wrote: %s", job.folder)
    for each in (found.report, *found.others.values()):
        each.require()


def _prepared(module: Classifier) -> PreparedModel:
    assert isinstance(module.model, PreparedModel)
    return module.model
