"""Classifiers of torchvision by name, with their published weights: `model=torchvision model.name=resnet50`.

Downloads go where torchvision's own go ($TORCH_HOME/hub/checkpoints), so either finds what the other fetched.
"""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlparse

import torch
import torchvision
from torch import nn
from torchvision.models import WeightsEnum, get_model_builder, get_model_weights, list_models

from qat.errors import CheckpointError, ConfigError, unknown_name
from qat.models.checkpoint import load_state
from qat.models.head import head_of
from qat.models.preprocessing import Preprocessing
from qat.models.published import other_classes, unreachable
from qat.models.state_file import read_state

log = logging.getLogger(__name__)

NAMES = tuple(list_models(module=torchvision.models))  # of the classification builders, sorted
OPTIONS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    # their own init takes minutes to draw from truncated normals, and they warn that it will go
    {"googlenet": {"init_weights": False}, "inception_v3": {"init_weights": False}}
)
DIGEST = re.compile(r"-([0-9a-f]{8,})\.")  # beginning of the SHA-256, in the names of torchvision's files
PATIENCE_S = 20  # without an answer


def build(
    name: str, num_classes: int = 1000, *, weights: str | bool | None = None, reset_head: bool = False, **options: Any
) -> nn.Module:
    """A classifier of torchvision, in train mode; GoogLeNet and Inception v3 with their auxiliary heads.

    Args:
        name: As `torchvision.models` calls its builder; one of `NAMES`.
        num_classes: Width of the head.
        weights: Of the published ones, e.g. `IMAGENET1K_V1`; `DEFAULT` or True takes the newest. None starts fresh.
        reset_head: Leave the head as initialised, to be trained anew; needed for another number of classes.
        **options: Passed on to the builder, e.g. `width_mult=0.5` for mobilenet_v2.

    Raises:
        ConfigError: An unknown name, unknown weights, or an option that the builder does not take.
        CheckpointError: The weights cannot be fetched, or have another number of classes.
    """
    entry = find_weights(name, weights)
    given = {**_needed_by(name, entry), **options}
    make = partial(_fresh, name, given)
    model = make(num_classes)
    if entry is None:
        return model
    classes = len(entry.meta["categories"] or ())  # some are features without a head
    if num_classes != classes and not reset_head:
        raise CheckpointError(other_classes(f"{entry.name} of {name}", classes, num_classes))
    loaded = load_state(model, read_state(fetch(entry)), head=head_of(make, num_classes) if reset_head else ())
    log.info("%s", loaded)
    return model


def find_weights(name: str, weights: str | bool | None) -> WeightsEnum | None:
    """The published weights of a builder, by name; None for None.

    Raises:
        ConfigError: An unknown name of either; the known ones are listed.
    """
    if name not in NAMES:
        raise ConfigError(unknown_name("model of torchvision", name, NAMES))
    if weights is None or weights is False:
        return None
    known = get_model_weights(name).__members__  # with the alias DEFAULT
    key = "DEFAULT" if weights is True else str(weights).rpartition(".")[2]  # ResNet18_Weights.IMAGENET1K_V1 too
    if key not in known:
        raise ConfigError(unknown_name(f"weights of {name}", str(weights), known))
    return known[key]


def preprocessing(name: str, weights: str | bool | None) -> Preprocessing | None:
    """How images were prepared when the published weights were evaluated; nothing is fetched."""
    entry = find_weights(name, weights)
    if entry is None:
        return None
    transform = entry.transforms()
    return Preprocessing(
        image_size=transform.crop_size[0],
        resize_size=transform.resize_size[0],
        interpolation=transform.interpolation.value,
        mean=tuple(transform.mean),
        std=tuple(transform.std),
    )


def fetch(entry: WeightsEnum) -> Path:
    """The file of published weights, downloaded where it is not there yet; whole or not at all.

    Raises:
        CheckpointError: The host is unreachable, the digest is wrong, or the folder cannot be written.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(entry.url).path).name
    if path.is_file():
        return path
    digest = DIGEST.search(path.name)
    before = socket.getdefaulttimeout()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        socket.setdefaulttimeout(PATIENCE_S)  # torch.hub sets none, and a silent host would hold the run for minutes
        torch.hub.download_url_to_file(entry.url, str(path), digest and digest[1], progress=False)
    except (OSError, RuntimeError, ValueError) as error:  # no network or disk; a wrong digest; a URL that is none
        where = f"download {entry.url} elsewhere, put it to {path} and run again, or name it with init_from=FILE"
        raise CheckpointError(unreachable(str(entry), error, where)) from error
    finally:
        socket.setdefaulttimeout(before)
    return path


def _fresh(name: str, options: Mapping[str, Any], num_classes: int) -> nn.Module:
    try:
        return get_model_builder(name)(num_classes=num_classes, **{**OPTIONS.get(name, {}), **options})
    except TypeError as error:
        given = ", ".join(f"{key}={value!r}" for key, value in options.items()) or "none"
        raise ConfigError(f"model {name!r} does not take these options: {given} ({error})") from error


def _needed_by(name: str, entry: WeightsEnum | None) -> dict[str, Any]:
    """What torchvision's builders themselves set for their weights."""
    if entry is None:
        return {}
    if name in ("googlenet", "inception_v3"):
        return {"transform_input": True}  # trained on another normalization, which the model undoes
    if name.startswith("vit"):
        return {"image_size": entry.meta["min_size"][0]}  # position embeddings for this size alone
    return {}
