"""The float model that a run quantizes: loaded, trained here, or from the cache."""

from __future__ import annotations

import hashlib
import logging
import shutil
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from qat import machine
from qat.data import ImageData
from qat.models import ModelSource, head_of, load_float
from qat.pipeline.changes import READING
from qat.pipeline.classifier import build_classifier
from qat.pipeline.resumption import checkpoint_of
from qat.pipeline.source import build_model
from qat.pipeline.trainer import fit
from qat.settings import plain
from qat.training import (
    Classifier,
    FrozenBackbone,
    cached_baseline,
    require_classifier,
    require_training_state,
)
from qat.training.interruption import CHECKPOINT, FLOAT

log = logging.getLogger(__name__)

VERSIONED = ("qat", "torch", "torchvision", "timm", "torchmetrics")  # packages whose code changes with their version
# settings that leave the weights of the float model as they are; all others are part of its key in the cache
WHEREVER = {
    "data": READING,
    "trainer": (
        "_target_", "accelerator", "log_every_n_steps", "enable_progress_bar", "num_sanity_val_steps",
        "limit_val_batches", "deterministic",
    ),
}  # fmt: skip


def code_of(model: nn.Module) -> dict[str, str]:
    """SHA-256 of the files in which classes of a model are written, by module; of packages the version is known."""
    classes = {type(module) for module in model.modules()}
    names = sorted({cls.__module__ for cls in classes if cls.__module__.partition(".")[0] not in VERSIONED})
    files = {name: getattr(sys.modules.get(name), "__file__", None) for name in names}
    return {name: hashlib.sha256(Path(file).read_bytes()).hexdigest() for name, file in files.items() if file}


def float_baseline(cfg: DictConfig, source: ModelSource, data: ImageData) -> Classifier:
    """The float model to quantize: as it was loaded, or trained here (a whole model, or a new head), or cached."""
    classes = source.num_classes or data.num_classes
    section = source.section(classes, reset_head=cfg.init_reset_head)
    model: nn.Module = build_model(cfg, section)
    head: tuple[str, ...] = ()
    if cfg.init_reset_head:
        head = head_of(lambda n: build_model(cfg, source.section(n, fresh=True)), classes)
    images = torch.cat([images for images, _ in islice(data.calibration_dataloader(), 2)])[:2]
    way_out = (
        "Leave model.num_classes out, and it is taken from the data"
        if source.takes_classes
        else f"Give {source.path} a parameter num_classes, which is then set from the data"
    )
    require_classifier(model, images, data.num_classes, way_out)
    module = build_classifier(cfg, "float", model, data)
    start: dict[str, Any] = {"weights": source.weights, "reset_head": bool(cfg.init_reset_head)}
    if cfg.init_from is not None:
        rename = plain(cfg, "init_rename") or {}
        loaded = load_float(model, cfg.init_from, rename=rename, strict=cfg.init_strict, head=head)
        log.info("%s", loaded)
        start |= {"sha256": loaded.sha256, "rename": rename, "strict": bool(cfg.init_strict)}
        if loaded.masks and cfg.task == "qat" and not cfg.qat.keep_zeros:
            log.warning(
                "%d masks in %s, and training moves zeros: qat.keep_zeros=true keeps them", loaded.masks, loaded.path
            )
    if (cfg.init_from is not None or source.weights) and not head:
        return module
    produced_by = {
        **{key: plain(cfg, key) for key in ("float", "seed")},
        **{key: {k: v for k, v in plain(cfg, key).items() if k not in left} for key, left in WHEREVER.items()},
        "model": section,
        "start": start,
        **({"code": own} if (own := code_of(model)) else {}),
        "versions": {k: v for k, v in machine.versions().items() if k in ("qat", "torch", "torchvision")},
    }
    name = f"{type(model).__name__.lower()}-{type(data).__name__.lower()}"
    frozen = [FrozenBackbone(head)] if cfg.float.freeze_backbone else []
    folder, checkpoint = Path(cfg.run_dir), checkpoint_of(cfg, "float")

    def train() -> None:
        if checkpoint is not None:
            require_training_state(checkpoint)
        fit(cfg, "float", module, data, folder, *frozen, ckpt_path=checkpoint)

    cached_baseline(model, produced_by, cfg.cache_dir, name, train)
    shutil.rmtree((folder / CHECKPOINT).parent / FLOAT, ignore_errors=True)  # the cache has it
    return module
