"""What helps training beside the labels, from `qat`; refused before anything is loaded."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import pytorch_lightning as pl
from omegaconf import DictConfig

from qat.errors import ConfigError, unknown_name
from qat.models import ModelSource
from qat.recipe import QuantRecipe
from qat.settings import plain, reading
from qat.training.averaging import AveragedWeights, require_no_freezing
from qat.training.classifier import require_aids
from qat.training.distillation import Distillation
from qat.training.oscillation import OscillationControl, require_calm
from qat.training.reestimation import ReestimatedBatchNorm
from qat.training.strategy import trains_ranges

T = TypeVar("T")

OF_TRAINING = {  # refused where nothing is trained
    "distill": None,
    "ema": None,
    "oscillation": None,
    "mixup": 0.0,
    "warmup": 0.0,
    "activations_from": 0.0,
    "reestimate_bn": 0,
}


@reading("qat")
def read_distillation(cfg: DictConfig, source: ModelSource) -> Distillation | None:
    """The share of the float model in the loss; None to learn from labels alone.

    Raises:
        ConfigError: a wrong value or key; nothing is trained; the float model would be untrained itself;
            features that nothing compares.
    """
    distill = _read(cfg, "distill", Distillation, "{temperature: 2.0, weight: 0.5}")
    if distill is None:
        return None
    if not distill.features and "feature_weight" in cfg.qat.distill:
        raise ConfigError("qat.distill.feature_weight has no effect without qat.distill.features=[NAME, ...]")
    if distill.features and (cfg.qat.equalize or cfg.placement == "modules"):
        why = (
            "qat.equalize scales what it computes on the way" if cfg.qat.equalize else "placement=modules has no graph"
        )
        raise ConfigError(f"qat.distill.features are those of the float model, and {why}; leave one of the two out")
    if cfg.init_from is None and source.weights is None and cfg.float.epochs == 0:
        raise ConfigError(
            "qat.distill needs a float teacher, and the float model of this run is not trained: give init_from=FILE, "
            "model.weights=NAME or float.epochs, or qat.distill=null"
        )
    return distill


@reading("qat")
def read_callbacks(cfg: DictConfig, recipe: QuantRecipe) -> list[pl.Callback]:
    """What stands beside the callback of quantization-aware training.

    Raises:
        ConfigError: a wrong value or key; nothing is trained; a recipe that it does not go with.
    """
    for key in ("mixup", "warmup", "activations_from", "reestimate_bn"):
        if cfg.qat[key] and cfg.qat.epochs == 0:
            raise ConfigError(_without_training(f"{key}={cfg.qat[key]}", f"{key}=0"))
    require_aids(mixup=cfg.qat.mixup, warmup=cfg.qat.warmup)
    found: list[pl.Callback] = []
    if (control := _read(cfg, "oscillation", OscillationControl, "{damp: 0.01} or {freeze: 0.02}")) is not None:
        require_calm(recipe, freezes=control.freeze is not None, freeze_observers_at=cfg.qat.freeze_observers_at)
        found.append(control)
    if (average := _read(cfg, "ema", AveragedWeights, "{decay: 0.999}")) is not None:
        if control is not None:
            require_no_freezing(control)
        found.append(average)
    if cfg.qat.reestimate_bn != 0:  # under the weights that the others leave
        found.append(ReestimatedBatchNorm(batches=cfg.qat.reestimate_bn))
    return found


def _read(cfg: DictConfig, key: str, kind: Callable[..., T], example: str) -> T | None:
    """What `qat.KEY` describes; None where it is null."""
    given: Any = plain(cfg, f"qat.{key}")
    if given is None:
        return None
    if not isinstance(given, Mapping):
        raise ConfigError(f"qat.{key} needs a mapping such as {example}, got {given!r}")
    known = list(inspect.signature(kind).parameters)
    for name in given:
        if name not in known:
            raise ConfigError(unknown_name(f"key of qat.{key}", str(name), known))
    made = kind(**given)
    if cfg.qat.epochs == 0:
        raise ConfigError(_without_training(key, f"{key}=null"))
    return made


def require_scales(cfg: DictConfig, recipe: QuantRecipe) -> None:
    """Raise `ConfigError` for a learning rate of trained ranges, where the recipe trains none."""
    if cfg.qat.scale_lr is not None and not trains_ranges(recipe):
        raise ConfigError(
            f"qat.scale_lr={cfg.qat.scale_lr} has no effect: recipe {recipe.name} trains no ranges. Use one with LSQ "
            "or PACT, or leave it out"
        )


def _without_training(given: str, instead: str) -> str:
    return f"qat.{given} has no effect without training: give qat.epochs, or qat.{instead}"
