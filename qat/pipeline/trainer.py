"""Lightning's Trainer as a run uses it: to train the float baseline, to train fake-quant, to evaluate."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl
from omegaconf import DictConfig
from pytorch_lightning.callbacks import ModelCheckpoint

from qat.data import ImageData
from qat.recorder import TrainingRecorder
from qat.settings import build
from qat.training import CarefulCheckpointIO, Classifier, Phase, SafeStop, SeedEveryEpoch
from qat.training.interruption import CHECKPOINT, FLOAT
from qat.training.progress import StageBar, TrainingBar
from qat.training.ranges import RangeLogger

# phases of the schedule, and the key that says where each starts
PHASES = {
    Phase.LEARN_RANGES: "",
    Phase.RANGES_FROZEN: "freeze_observers_at",
    Phase.BATCHNORM_FROZEN: "freeze_bn_at",
}


def fit(
    cfg: DictConfig, section: str, module: Classifier, data: ImageData, folder: Path,
    *callbacks: pl.Callback, ckpt_path: str | None = None,
) -> None:  # fmt: skip
    """Train a module for the epochs of its section, `float` or `qat`."""
    trainer = _trainer(cfg, section, folder, callbacks)
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)


def _trainer(cfg: DictConfig, section: str, folder: Path, callbacks: tuple[pl.Callback, ...]) -> pl.Trainer:
    phases = {str(name): cfg.qat[key] if key else 0.0 for name, key in PHASES.items()} if section == "qat" else {}
    extra: list[pl.Callback] = [SeedEveryEpoch(cfg.seed), TrainingRecorder(folder, section, phases), RangeLogger()]
    if cfg.trainer.enable_progress_bar:
        extra.append(TrainingBar())
    checkpoints = (folder / CHECKPOINT).parent
    # a resumed run writes over what it had written
    if section == "qat":
        kept = ModelCheckpoint(
            checkpoints, "best", monitor="val/top1", mode="max", save_last=True, enable_version_counter=False
        )
    else:  # the best is not kept: the baseline is what training ends with
        kept = ModelCheckpoint(checkpoints / FLOAT, "last", enable_version_counter=False)
        extra.append(SafeStop())
    extra.append(kept)
    return build(
        cfg,
        "trainer",
        max_epochs=cfg[section].epochs,
        callbacks=[*callbacks, *extra],
        logger=build(cfg, "logger", name=section),
        plugins=[CarefulCheckpointIO()],
        default_root_dir=str(folder),
        enable_model_summary=False,
    )


def measure_top1(cfg: DictConfig, module: Classifier, data: ImageData) -> float:
    """Top-1 on the validation split, in percent."""
    quiet = cfg.copy()
    quiet.trainer.enable_progress_bar = False
    quiet.trainer.limit_val_batches = None  # a shorter look while training; what is compared is of the same images
    bar = [StageBar("measuring top-1")] if cfg.trainer.enable_progress_bar else []
    trainer = build(
        quiet, "trainer", logger=False, enable_checkpointing=False, enable_model_summary=False, callbacks=bar
    )
    (metrics,) = trainer.validate(module, datamodule=data, verbose=False)
    return 100.0 * metrics["val/top1"]
