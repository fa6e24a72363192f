"""The LightningModule of a section of the config, `float` or `qat`."""

from __future__ import annotations

from omegaconf import DictConfig
from torch import nn

from qat.data import ImageData
from qat.settings import build
from qat.training import Classifier
from qat.training.distillation import Distillation


def build_classifier(
    cfg: DictConfig,
    section: str,
    model: nn.Module,
    data: ImageData,
    *,
    distill: Distillation | None = None,
    teacher: nn.Module | None = None,
) -> Classifier:
    """`model` with the optimizer, schedule and loss of that section."""
    settings = cfg[section]
    return Classifier(
        model,
        num_classes=data.num_classes,
        optimizer=build(cfg, f"{section}.optimizer"),
        scheduler=build(cfg, f"{section}.scheduler") if settings.scheduler else None,
        label_smoothing=settings.label_smoothing,
        aux_weight=settings.aux_weight,
        distill=distill,
        teacher=teacher,
        scale_lr=settings.get("scale_lr"),
        mixup=settings.get("mixup", 0.0),
        warmup=settings.get("warmup", 0.0),
    )
