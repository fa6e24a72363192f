"""The callback of quantization-aware training, from `qat`."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

import qat
from qat.errors import CheckpointError, ConfigError, unknown_name
from qat.settings import classes, reading
from qat.training import QuantizationAwareTraining


@reading("qat")
def build_callback(cfg: DictConfig, recipe: qat.QuantRecipe, target: qat.Target) -> QuantizationAwareTraining:
    """The callback that `qat` describes.

    Raises:
        ConfigError: values outside their range.
        CheckpointError: nothing to resume from.
    """
    if type(cfg.qat.epochs) is not int or cfg.qat.epochs < 0:
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
        activations_from=cfg.qat.activations_from,
        compile=cfg.qat.compile,
        placement=cfg.placement,
        leaf_modules=classes(cfg, "leaf_modules"),
    )
