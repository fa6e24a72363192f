"""float → prepare → calibrate → train → convert → export → verify → card: static quantization, trained or not."""

from __future__ import annotations

import copy
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import nn

import qat
from qat.artifact import Artifact
from qat.data import ImageData
from qat.files import write_text
from qat.parity import ParityReport
from qat.pipeline.aids import read_callbacks, read_distillation, require_scales
from qat.pipeline.analysis import read_analysis
from qat.pipeline.baseline import float_baseline
from qat.pipeline.calibration import calibrated
from qat.pipeline.callback import build_callback
from qat.pipeline.classifier import build_classifier
from qat.pipeline.delivery import describe, export_all, export_elsewhere, measure_latency, say_saturation
from qat.pipeline.helpers import read_helpers
from qat.pipeline.lifecycle import begun, conclude, settle
from qat.pipeline.processes import joined
from qat.pipeline.reporting import classes, command_line, operators, write_page
from qat.pipeline.results import summarize
from qat.pipeline.resumption import checkpoint_of
from qat.pipeline.source import read_source, with_preprocessing
from qat.pipeline.terminal import follow
from qat.pipeline.trainer import fit, measure_top1
from qat.pipeline.wanted import read_recipe, read_targets, read_tolerance
from qat.placement.prepared import PreparedModel
from qat.settings import build
from qat.target import joint
from qat.training import Classifier
from qat.training.processes import by_first
from qat.training.trial import require_exportable

log = logging.getLogger(__name__)
OF_TRAINING = {  # refused where nothing is trained
    "distill": None,
    "ema": None,
    "oscillation": None,
    "mixup": 0.0,
    "warmup": 0.0,
    "activations_from": 0.0,
    "reestimate_bn": 0,
}


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


def static(cfg: DictConfig) -> dict[str, Any]:
    """Quantization with ranges that are known before the model runs; trained, if `qat.epochs` is not 0."""
    with begun(cfg) as (folder, clock):
        recipe, targets = read_recipe(cfg), read_targets(cfg)
        target = joint(targets)
        analysis, recipe = read_analysis(cfg, recipe, target), recipe.settled()
        callback, aids = build_callback(cfg, recipe, target), read_callbacks(cfg, recipe)
        source = read_source(cfg)
        distill, helpers = read_distillation(cfg, source), read_helpers(cfg)
        require_scales(cfg, recipe)
        cfg = with_preprocessing(cfg, source)
        tolerance = read_tolerance(cfg)
        cfg = joined(cfg)
        folder = Path(cfg.run_dir)
        settle(cfg, folder)

        with clock("data"):
            data: ImageData = build(cfg, "data")
            data.setup()
        with clock("float"):
            baseline = float_baseline(cfg, source, data)
            top1 = {"float": measure_top1(cfg, baseline, data)}
        log.info("float top-1 %.2f %%", top1["float"])

        example = next(iter(data.calibration_dataloader()))[0][:2]
        model = helpers.before(_copy(baseline), example)
        if analysis is not None:
            with clock("analyze"):
                recipe = analysis.recipe(cfg, model, data, folder)
            callback = build_callback(cfg, recipe, target)
        module = build_classifier(cfg, "qat", model, data, distill=distill, teacher=baseline.model)
        with clock("prepare"):
            callback.prepare(module, (example,))
            if distill is not None and distill.features:
                module.learn_features()  # names that nothing has end the run here
        prepared = _prepared(module)
        write_text(folder / "plan.txt", str(prepared.plan))
        checkpoint = checkpoint_of(cfg, "qat") if cfg.qat.epochs > 0 else None
        with clock("calibrate"):
            top1["ptq"] = calibrated(cfg, callback, helpers, module, data, checkpoint)
        log.info("PTQ top-1 %.2f %%", top1["ptq"])
        if cfg.qat.epochs > 0 and cfg.qat.try_export:
            with clock("try_export"):
                by_first(lambda: require_exportable(prepared, target))
        if cfg.qat.epochs > 0:
            with clock("qat"):
                fit(cfg, "qat", module, data, folder, callback, *aids, ckpt_path=checkpoint)
                top1["qat"] = measure_top1(cfg, module, data)
            log.info("QAT top-1 %.2f %%", top1["qat"])
        else:
            top1["qat"] = top1["ptq"]

        prepared = _prepared(module).cpu()

        def deliver() -> tuple[dict[str, Artifact], Artifact, ParityReport, dict[str, ParityReport], dict[str, float]]:
            about = describe(cfg, baseline.model, data, top1["qat"])
            artifacts, float_file = export_all(cfg, prepared, baseline.model, example, folder, target, clock, about)
            with clock("verify"):
                report = qat.verify(
                    prepared, artifacts[target.artifact], follow(cfg, data.val_dataloader(), "verifying"),
                    float_model=baseline.model, tolerance=tolerance, strict=False,
                )  # fmt: skip
                say_saturation(report, target)
                others = export_elsewhere(cfg, prepared, targets[1:], folder, data, tolerance, about)
            with clock("latency"):
                latency_ms = measure_latency(cfg, {"float": float_file, "int8": artifacts[target.artifact]}, example)
            return artifacts, float_file, report, others, latency_ms

        artifacts, float_file, report, others, latency_ms = by_first(deliver)
    results = summarize(cfg, prepared, report, top1, latency_ms, artifacts[target.artifact], float_file, clock)
    results["also"] = {name: asdict(other.stages[-1]) for name, other in others.items()}

    def end() -> None:
        conclude(results, folder)
        if cfg.report:
            int8, as_float = artifacts[target.artifact], baseline.cpu().eval()
            write_page(
                folder, lambda: operators(cfg, prepared, int8, data), lambda: classes(cfg, as_float, int8, data, folder)
            )
        log.info("everything this run wrote: %s", folder)
        for each in (report, *others.values()):
            each.require()

    by_first(end)
    return results


def _copy(module: Classifier) -> nn.Module:
    return copy.deepcopy(module.model)


def _prepared(module: Classifier) -> PreparedModel:
    assert isinstance(module.model, PreparedModel)
    return module.model
