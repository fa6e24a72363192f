"""Models of timm by name, with their published weights: `model=timm model.name=resnet18`. Needs the extra `timm`."""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from qat.errors import CheckpointError, ConfigError, unknown_name
from qat.models.checkpoint import load_state
from qat.models.head import head_of
from qat.models.preprocessing import Preprocessing
from qat.models.published import other_classes, unreachable
from qat.models.state_file import StateFile

try:
    import timm
    from timm.data import resolve_data_config
    from timm.models import PretrainedCfg, get_arch_pretrained_cfgs, get_pretrained_cfg, list_models
except ImportError as error:
    raise ConfigError(
        "model=timm needs the package `timm`: run `uv sync --extra timm` or `pip install timm`"
    ) from error

log = logging.getLogger(__name__)


def build(
    name: str, num_classes: int = 1000, *, weights: str | bool | None = None, reset_head: bool = False, **options: Any
) -> nn.Module:
    """A model of timm, in train mode.

    Args:
        name: As `timm.list_models()` has it, e.g. `resnet18`.
        num_classes: Width of the head.
        weights: Tag of published ones, e.g. `a1_in1k`; `DEFAULT` or True takes timm's choice. None starts fresh.
        reset_head: Leave the head as initialised, to be trained anew; needed for another number of classes.
        **options: Passed on to `timm.create_model`, e.g. `drop_path_rate=0.1`.

    Raises:
        ConfigError: An unknown name, unknown weights, or an option that the model does not take.
        CheckpointError: The weights cannot be fetched, or have another number of classes.
    """
    tag = find_weights(name, weights)
    make = partial(_fresh, name, options)
    model = make(num_classes)
    if tag is None:
        return model
    classes = _config(f"{name}.{tag}").num_classes
    if num_classes != classes and not reset_head:
        raise CheckpointError(other_classes(f"{tag} of {name}", classes, num_classes))
    loaded = load_state(model, fetch(name, tag, options), head=head_of(make, num_classes) if reset_head else ())
    log.info("%s", loaded)
    return model


def find_weights(name: str, weights: str | bool | None) -> str | None:
    """The tag of published weights; None for None.

    Raises:
        ConfigError: An unknown name of either; near or known ones are listed.
    """
    known = list_models()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=5, cutoff=0.0)
        raise ConfigError(
            f"unknown model of timm {name!r}. Nearest: {', '.join(near)}; timm.list_models() lists all {len(known)}"
        )
    if weights is None or weights is False:
        return None
    configs = get_arch_pretrained_cfgs(name)
    tags = [full.partition(".")[2] for full, config in configs.items() if config.has_weights]
    if weights is True or weights == "DEFAULT":
        weights = _config(name).tag
    tag = str(weights).removeprefix(f"{name}.")
    if tag not in tags:
        raise ConfigError(unknown_name(f"weights of {name}", str(weights), tags))
    return tag


def preprocessing(name: str, weights: str | bool | None) -> Preprocessing | None:
    """How images were prepared when the published weights were evaluated; nothing is fetched."""
    tag = find_weights(name, weights)
    if tag is None:
        return None
    config = resolve_data_config(pretrained_cfg=_config(f"{name}.{tag}").to_dict(), use_test_size=True)
    if config["crop_mode"] != "center":
        log.warning(
            "%s.%s was evaluated on images brought to size in the manner %r, here the shorter side is resized and the "
            "centre cut out; top-1 may differ a little from what is published",
            name, tag, config["crop_mode"],
        )  # fmt: skip
    height, size = config["input_size"][1:]
    if height != size:
        log.warning(
            "%s.%s was trained and evaluated on images of %d x %d, and images here are square, %d x %d; top-1 is not "
            "the published one",
            name, tag, height, size, size, size,
        )  # fmt: skip
    return Preprocessing(
        image_size=size,
        resize_size=math.floor(size / config["crop_pct"]),
        interpolation=config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


def fetch(name: str, tag: str, options: Mapping[str, Any]) -> StateFile:
    """The published weights under the names of the model's own tensors: timm translates old checkpoints itself.

    Raises:
        CheckpointError: They cannot be fetched.
    """
    full = f"{name}.{tag}"
    try:
        state = timm.create_model(full, pretrained=True, **options).state_dict()
    except Exception as error:  # urllib, requests, httpx and huggingface_hub each raise their own
        where = f"save timm.create_model({full!r}, pretrained=True).state_dict() elsewhere, and name it with init_from"
        raise CheckpointError(unreachable(f"timm's {full}", error, f"{where}=FILE")) from error
    return StateFile(path=Path(full), kind="weights of timm", sha256="", tensors=state)


def _config(full: str) -> PretrainedCfg:
    config = get_pretrained_cfg(full, allow_unregistered=False)
    assert config is not None  # registered: it raises where it is not
    return config


def _fresh(name: str, options: Mapping[str, Any], num_classes: int) -> nn.Module:
    try:
        return timm.create_model(name, num_classes=num_classes, **options)
    except TypeError as error:
        given = ", ".join(f"{key}={value!r}" for key, value in options.items()) or "none"
        raise ConfigError(f"model {name!r} does not take these options: {given} ({error})") from error
