"""float → prepare → calibrate → train → convert → export → verify → card: one run, the only reader of the config."""

from __future__ import annotations

import copy
import json
import logging
import shlex
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import ModelCheckpoint
from rich.console import Console
from torch import Tensor, nn

import qat
from qat import machine
from qat.artifact import Artifact, fingerprint
from qat.audit import DELIVERED, require_sound
from qat.checkpoint import load_prepared
from qat.data import ImageData
from qat.data.preparation import preparation
from qat.errors import CheckpointError, ConfigError, unknown_name
from qat.files import write_text
from qat.models import ModelSource, head_of, load_float
from qat.placement.prepared import PreparedModel
from qat.recorder import TrainingRecorder, record_classes, record_layers, record_run
from qat.report import record
from qat.report.card import card
from qat.report.folder import read_run
from qat.report.objective import FAILURE
from qat.report.page import write_report
from qat.runtime import load, require_installed
from qat.runtime.latency import interleaved
from qat.runtime.profile import profile
from qat.settings import build, plain, reading
from qat.target import joint
from qat.training import (
    CarefulCheckpointIO,
    Classifier,
    FrozenBackbone,
    Phase,
    QuantizationAwareTraining,
    SeedEveryEpoch,
    cached_baseline,
    held,
    require_classifier,
    require_training_state,
    run_to_resume,
)
from qat.training.interruption import CHECKPOINT, LAST
from qat.training.progress import TrainingBar, followed
from qat.training.ranges import RangeLogger
from qat.training.workers import explained_workers
from qat.verify import ParityReport, Tolerance

log = logging.getLogger(__name__)

# phases of the schedule, and the key that says where each starts
PHASES = {
    Phase.LEARN_RANGES: "",
    Phase.RANGES_FROZEN: "freeze_observers_at",
    Phase.BATCHNORM_FROZEN: "freeze_bn_at",
}


class Stopwatch:
    """Wall time of every stage, in seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Time a block under the name of its stage."""
        start = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


def run(cfg: DictConfig) -> dict[str, Any]:
    """One run from config to card; returns what `results.json` holds.

    Raises:
        QatError: anything the user can mend; nothing is left half-written.
    """
    cfg = _resumed(cfg)
    folder, clock = Path(cfg.run_dir), Stopwatch()
    _quiet()
    if cfg.quiet:
        cfg = cfg.copy()
        cfg.trainer.enable_progress_bar = False
    with held(folder), explained_workers(), clock("total"):
        recipe, targets = _recipe(cfg), _targets(cfg)
        target = joint(targets)
        callback = _callback(cfg, recipe, target)
        source = _source(cfg)
        cfg = _with_preprocessing(cfg, source)
        tolerance = _tolerance(cfg)
        _clear(folder, resumed=cfg.ckpt_path is not None)
        write_text(folder / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
        pl.seed_everything(cfg.seed, workers=True, verbose=False)

        with clock("data"):
            data: ImageData = build(cfg, "data")
            data.setup()
        with clock("float"):
            baseline = _float_baseline(cfg, source, data)
            top1 = {"float": _top1(cfg, baseline, data)}
        log.info("float top-1 %.2f %%", top1["float"])

        module = _classifier(cfg, "qat", _copy(baseline), data)
        example = next(iter(data.calibration_dataloader()))[0][:2]
        with clock("prepare"):
            callback.prepare(module, (example,))
        prepared = _prepared(module)
        write_text(folder / "plan.txt", str(prepared.plan))
        with clock("calibrate"):
            count = cfg.qat.calibration_batches
            callback.calibrate(
                module, _followed(cfg, islice(data.calibration_dataloader(), count), "calibrating", count)
            )
            top1["ptq"] = _top1(cfg, module, data)
        log.info("PTQ top-1 %.2f %%", top1["ptq"])
        if cfg.qat.epochs > 0:
            if cfg.ckpt_path is not None:  # before Lightning, which would end in a traceback
                require_training_state(cfg.ckpt_path)
                load_prepared(prepared, cfg.ckpt_path)
            with clock("qat"):
                _fit(cfg, "qat", module, data, folder, callback, ckpt_path=cfg.ckpt_path)
                top1["qat"] = _top1(cfg, module, data)
            log.info("QAT top-1 %.2f %%", top1["qat"])
        else:
            top1["qat"] = top1["ptq"]

        prepared = _prepared(module).cpu()
        about = _about(baseline.model, data, top1["qat"])
        artifacts, float_file = _export(prepared, baseline.model, example, folder, target, clock, about)
        with clock("verify"):
            report = qat.verify(
                prepared, artifacts[target.artifact], _followed(cfg, data.val_dataloader(), "verifying"),
                float_model=baseline.model, tolerance=tolerance, strict=False,
            )  # fmt: skip
            others = _elsewhere(prepared, targets[1:], folder, data, tolerance, about)
        with clock("latency"):
            latency_ms = _latency(cfg, float_file, artifacts[target.artifact], example)
    results = _results(cfg, prepared, report, top1, latency_ms, artifacts[target.artifact], float_file, clock)
    results["also"] = {name: asdict(other.stages[-1]) for name, other in others.items()}
    write_text(folder / "results.json", json.dumps(results, indent=2) + "\n")
    Console().print(card(results))
    if cfg.report:
        _report(prepared, baseline, artifacts[target.artifact], data, folder)
    log.info("everything this run wrote: %s", folder)
    for each in (report, *others.values()):
        each.require()
    return results


def _quiet() -> None:
    """One line per stage: without what Lightning says at every Trainer, of devices, tips, and its own libraries."""
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    logging.getLogger("pytorch_lightning.accelerators.cuda").setLevel(logging.WARNING)
    for message in (
        r".*isinstance\(treespec, LeafSpec\).*",  # Lightning 2.6 on torch 2.15
        ".*does not have many workers.*",  # images in memory need none
        ".*Experiment logs directory.*",  # a resumed run
        ".*Checkpoint directory .* exists and is not empty.*",
    ):
        warnings.filterwarnings("ignore", message=message)


# stages


def _resumed(cfg: DictConfig) -> DictConfig:
    """The config; with `ckpt_path=last`, that of the interrupted run, which goes on in its folder."""
    if cfg.ckpt_path != LAST:
        return cfg
    alone = HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN
    folder = run_to_resume(Path(cfg.run_dir), siblings=not alone)
    checkpoint = folder / CHECKPOINT
    cfg = cfg.copy()
    cfg.run_dir, cfg.ckpt_path = str(folder), str(checkpoint) if checkpoint.is_file() else None
    log.info("%s goes on %s", folder, "from its last epoch" if cfg.ckpt_path else "from its start: no epoch was done")
    return cfg


def _clear(folder: Path, *, resumed: bool) -> None:
    """Take away what an earlier run in the same folder left, and what would speak for this one."""
    for name in (FAILURE, "results.json", *(() if resumed else (CHECKPOINT,))):
        (folder / name).unlink(missing_ok=True)


def _listed() -> list[str]:
    """The names of `target=[A, B]`, of which Hydra would make one target, B's keys over A's; empty for `target=A`."""
    if not HydraConfig.initialized() or "target" in HydraConfig.get().runtime.choices:
        return []
    given = [o.partition("=")[2] for o in HydraConfig.get().overrides.task if o.startswith("target=[")]
    return [str(name) for name in OmegaConf.create(given[-1])] if given else []


@reading("quant")
def _recipe(cfg: DictConfig) -> qat.QuantRecipe:
    return qat.QuantRecipe.parse(plain(cfg, "quant"))


@reading("target")
def _targets(cfg: DictConfig) -> list[qat.Target]:
    """The target and those that the same training also serves, each able to run here."""
    targets = [qat.Target.parse(value) for value in (*(_listed() or [plain(cfg, "target")]), *plain(cfg, "also"))]
    for target in targets:
        require_installed(target)
        if target.needs_vnni and target.weight_bits > 7:
            message = machine.saturation(target.name, machine.cpu())
            if message:
                log.warning(message)
    return targets


def _elsewhere(
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
        artifact = qat.export(integer, path, target=target, metadata=about)
        example = next(iter(data.val_dataloader()))[0][:1]
        require_sound(artifact, runtime=load(artifact), example=example, integer=integer, require=DELIVERED)
        found[target.name] = qat.verify(prepared, artifact, data.val_dataloader(), tolerance=tolerance, strict=False)
        deployed = found[target.name].stages[-1]
        log.info("%s: agreement %.2f %%, at most %.1f steps", deployed.name, deployed.agreement, deployed.max_steps)
    return found


@reading("model")
def _source(cfg: DictConfig) -> ModelSource:
    source = ModelSource.parse(plain(cfg, "model"))
    start = source.weights or cfg.init_from
    if source.weights and cfg.init_from is not None:
        raise ConfigError(
            f"init_from={cfg.init_from} and model.weights={source.weights} are two places to start from; give one"
        )
    if cfg.init_reset_head and not start:
        raise ConfigError("init_reset_head=true needs weights to start from: model.weights=NAME or init_from=FILE")
    if cfg.float.freeze_backbone and not cfg.init_reset_head:
        raise ConfigError(
            "float.freeze_backbone=true trains a new head on weights that stay; it needs init_reset_head=true, and "
            "model.weights=NAME or init_from=FILE"
        )
    return source


def _with_preprocessing(cfg: DictConfig, source: ModelSource) -> DictConfig:
    """The config, with what the data leave open (null) as it was when the published weights were evaluated."""
    published = source.preprocessing()
    if published is None:
        return cfg
    cfg = cfg.copy()
    if cfg.data.get("image_size") is not None:
        published = published.at(cfg.data.image_size)
    for key, value in published.options().items():
        given = plain(cfg, f"data.{key}") if key in cfg.data else value
        if given is None:
            cfg.data[key] = value
        elif given != value:
            log.warning("data.%s is %s, and the weights %s were evaluated with %s", key, given, source.weights, value)
    return cfg


def _float_baseline(cfg: DictConfig, source: ModelSource, data: ImageData) -> Classifier:
    """The float model to quantize: as it was loaded, or trained here (a whole model, or a new head), or cached."""
    classes = source.num_classes or data.num_classes
    section = source.section(classes, reset_head=cfg.init_reset_head)
    model: nn.Module = _model(cfg, section)
    head: tuple[str, ...] = ()
    if cfg.init_reset_head:
        head = head_of(lambda n: _model(cfg, source.section(n, fresh=True)), classes)
    images = torch.cat([images for images, _ in islice(data.calibration_dataloader(), 2)])[:2]
    way_out = (
        "Leave model.num_classes out, and it is taken from the data"
        if source.takes_classes
        else f"Give {source.path} a parameter num_classes, which is then set from the data"
    )
    require_classifier(model, images, data.num_classes, way_out)
    module = _classifier(cfg, "float", model, data)
    start = {"weights": source.weights, "reset_head": bool(cfg.init_reset_head)}
    if cfg.init_from is not None:
        rename = plain(cfg, "init_rename") or {}
        loaded = load_float(model, cfg.init_from, rename=rename, strict=cfg.init_strict, head=head)
        log.info("%s", loaded)
        start["sha256"] = loaded.sha256
    if (cfg.init_from is not None or source.weights) and not head:
        return module
    produced_by = {
        **{key: plain(cfg, key) for key in ("data", "float", "seed")},
        "model": section,
        "start": start,
        "precision": plain(cfg, "trainer.precision"),
        "versions": {k: v for k, v in machine.versions().items() if k in ("qat", "torch", "torchvision")},
    }
    name = f"{type(model).__name__.lower()}-{type(data).__name__.lower()}"
    frozen = [FrozenBackbone(head)] if cfg.float.freeze_backbone else []
    cached_baseline(
        model, produced_by, cfg.cache_dir, name, lambda: _fit(cfg, "float", module, data, Path(cfg.run_dir), *frozen)
    )
    return module


def _model(cfg: DictConfig, section: dict[str, Any]) -> nn.Module:
    cfg = cfg.copy()
    cfg.model = section
    return build(cfg, "model")


def _classifier(cfg: DictConfig, section: str, model: nn.Module, data: ImageData) -> Classifier:
    settings = cfg[section]
    return Classifier(
        model,
        num_classes=data.num_classes,
        optimizer=build(cfg, f"{section}.optimizer"),
        scheduler=build(cfg, f"{section}.scheduler") if settings.scheduler else None,
        label_smoothing=settings.label_smoothing,
        aux_weight=settings.aux_weight,
    )


@reading("qat")
def _callback(cfg: DictConfig, recipe: qat.QuantRecipe, target: qat.Target) -> QuantizationAwareTraining:
    if cfg.qat.epochs < 0:
        raise ConfigError(f"need qat.epochs >= 0, got {cfg.qat.epochs}; 0 is post-training quantization")
    if cfg.ckpt_path is not None and not Path(cfg.ckpt_path).is_file():
        raise CheckpointError(
            f"ckpt_path {cfg.ckpt_path!r} is no file; it resumes a QAT run from its checkpoints/last.ckpt. "
            "ckpt_path=last finds it. To start from a float model, use init_from"
        )
    if cfg.qat.compile not in (None, "regional"):
        raise ConfigError(unknown_name("value of qat.compile", str(cfg.qat.compile), ["null", "regional"]))
    return QuantizationAwareTraining(
        recipe=recipe,
        target=target,
        calibration_batches=cfg.qat.calibration_batches,
        freeze_observers_at=cfg.qat.freeze_observers_at,
        freeze_bn_at=cfg.qat.freeze_bn_at,
        compile=cfg.qat.compile,
        placement=cfg.placement,
    )


def _fit(
    cfg: DictConfig, section: str, module: Classifier, data: ImageData, folder: Path,
    *callbacks: pl.Callback, ckpt_path: str | None = None,
) -> None:  # fmt: skip
    trainer = _trainer(cfg, section, folder, callbacks)
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)


def _trainer(cfg: DictConfig, section: str, folder: Path, callbacks: tuple[pl.Callback, ...]) -> pl.Trainer:
    phases = {str(name): cfg.qat[key] if key else 0.0 for name, key in PHASES.items()} if section == "qat" else {}
    extra: list[pl.Callback] = [SeedEveryEpoch(cfg.seed), TrainingRecorder(folder, section, phases), RangeLogger()]
    if cfg.trainer.enable_progress_bar:
        extra.append(TrainingBar())
    if section == "qat":  # the float baseline is kept by the cache
        checkpoints = folder / "checkpoints"
        extra.append(
            ModelCheckpoint(
                checkpoints, "best", monitor="val/top1", mode="max", save_last=True,
                enable_version_counter=False,  # a resumed run writes over what it had written
            )
        )  # fmt: skip
    return build(
        cfg,
        "trainer",
        max_epochs=cfg[section].epochs,
        callbacks=[*callbacks, *extra],
        logger=build(cfg, "logger", name=section),
        plugins=[CarefulCheckpointIO()],
        default_root_dir=str(folder),
        enable_checkpointing=section == "qat",
        enable_model_summary=False,
    )


def _followed(cfg: DictConfig, batches: Iterable[Any], stage: str, total: int | None = None) -> Iterable[Any]:
    """The batches of a stage, with a bar on a terminal."""
    return followed(batches, stage, total) if cfg.trainer.enable_progress_bar else batches


def _top1(cfg: DictConfig, module: Classifier, data: ImageData) -> float:
    """Top-1 on the validation split, in percent."""
    quiet = cfg.copy()
    quiet.trainer.enable_progress_bar = False
    trainer = build(quiet, "trainer", logger=False, enable_checkpointing=False, enable_model_summary=False)
    (metrics,) = trainer.validate(module, datamodule=data, verbose=False)
    return 100.0 * metrics["val/top1"]


def _copy(module: Classifier) -> nn.Module:
    return copy.deepcopy(module.model)


def _prepared(module: Classifier) -> PreparedModel:
    assert isinstance(module.model, PreparedModel)
    return module.model


def _about(baseline: nn.Module, data: ImageData, top1: float) -> dict[str, str]:
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


def _export(
    prepared: PreparedModel,
    baseline: nn.Module,
    example: Tensor,
    folder: Path,
    target: qat.Target,
    clock: Stopwatch,
    about: dict[str, str],
) -> tuple[dict[str, Artifact], Artifact]:
    """The int8 artefacts by suffix, and the float model in the target's format to compare with."""
    with clock("convert"):
        integer = qat.convert(prepared)
    with clock("export"):
        suffixes = dict.fromkeys((".onnx", ".pt2", target.artifact))
        artifacts = {suffix: qat.export(integer, folder / f"int8{suffix}", metadata=about) for suffix in suffixes}
        for artifact in artifacts.values():
            runtime = load(artifact) if artifact.kind == target.artifact else None
            require_sound(artifact, runtime=runtime, example=example, integer=integer, require=DELIVERED)
        float_file = qat.export(baseline.cpu().eval(), folder / f"float{target.artifact}", (example,))
    return artifacts, float_file


def _latency(cfg: DictConfig, float_file: Artifact, int8_file: Artifact, example: Tensor) -> dict[str, float]:
    threads = torch.get_num_threads()
    runtimes = {name: load(file, threads=threads) for name, file in (("float", float_file), ("int8", int8_file))}
    shape = (cfg.latency.batch_size, *example.shape[1:])
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return interleaved(runtimes, x, repeats=cfg.latency.repeats)


def _report(prepared: PreparedModel, baseline: Classifier, artifact: Artifact, data: ImageData, folder: Path) -> None:
    """The records of where the run comes from, its operators and classes, and the report over all that it wrote."""
    try:
        measured = profile(artifact, next(iter(data.val_dataloader()))[0][:1])
        record.write(folder, record_run(_command()))
        record.write(folder, record_layers(prepared, data.val_dataloader(), profile=measured))
        int8 = load(artifact, threads=torch.get_num_threads())
        normalization = getattr(data, "normalization", None)
        pixels = {"mean": normalization.mean, "std": normalization.std} if normalization is not None else {}
        record.write(
            folder,
            record_classes(baseline.cpu().eval(), int8, data.val_dataloader(), data.class_names, folder, **pixels),
        )
        log.info("report: %s", write_report([read_run(folder)], folder))
    except Exception as error:  # whatever it is, a run that trained for hours does not end over its report
        log.warning("no report: %s", error)


def _command() -> str:
    """The command that starts this run again; empty where Hydra did not start it."""
    if not HydraConfig.initialized():
        return ""
    hydra = HydraConfig.get()
    return shlex.join(["python", f"{hydra.job.name}.py", *hydra.overrides.task])


@reading("verify")
def _tolerance(cfg: DictConfig) -> Tolerance:
    return Tolerance(agreement=cfg.verify.agreement, top1=cfg.verify.top1, in_float=cfg.verify.in_float)


def _results(
    cfg: DictConfig,
    prepared: PreparedModel,
    report: ParityReport,
    top1: dict[str, float],
    latency_ms: dict[str, float],
    int8_file: Artifact,
    float_file: Artifact,
    clock: Stopwatch,
) -> dict[str, Any]:
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
        "passed": report.passed,
        "failures": list(report.failures),
        "departure": report.departure,
        "parity": [asdict(stage) for stage in report.stages],
        "output_step": report.step,
        "notes": list(prepared.plan.notes),
        "seed": cfg.seed,
        "seconds": {stage: round(s, 2) for stage, s in clock.seconds.items()},
        "cpu": machine.cpu(),
        "versions": machine.versions(),
        "sha256": {"int8": int8_file.sha256, "float": float_file.sha256},
    }
