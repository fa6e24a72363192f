"""Where the model comes from: its class, its weights, and what the data take from them."""

from __future__ import annotations

import logging
from typing import Any

from omegaconf import DictConfig
from torch import nn

from qat.errors import ConfigError
from qat.models import ModelSource
from qat.settings import build, plain, reading

log = logging.getLogger(__name__)


@reading("model")
def read_source(cfg: DictConfig) -> ModelSource:
    """The model that `model` and `init_*` describe.

    Raises:
        ConfigError: two places to start from, or none where one is needed.
    """
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


def with_preprocessing(cfg: DictConfig, source: ModelSource) -> DictConfig:
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


def build_model(cfg: DictConfig, section: dict[str, Any]) -> nn.Module:
    """The model of another `model` section."""
    cfg = cfg.copy()
    cfg.model = section
    return build(cfg, "model")
