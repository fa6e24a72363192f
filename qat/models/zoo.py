"""The zoo: float models by name, for Python; `conf/model/NAME.yaml` is the same list for the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from torch import nn
from torchvision.models import mobilenet_v2, resnet18

from qat.errors import ConfigError, unknown_name
from qat.models.resnet_cifar import resnet20

BUILDERS: Mapping[str, Callable[..., nn.Module]] = MappingProxyType(
    {"mobilenet_v2": mobilenet_v2, "resnet18": resnet18, "resnet20": resnet20}
)


def names() -> tuple[str, ...]:
    """Names that `build` takes, sorted."""
    return tuple(sorted(BUILDERS))


def build(name: str, num_classes: int, **options: Any) -> nn.Module:
    """A freshly initialised float model, in train mode.

    Args:
        name: One of `names()`.
        num_classes: Width of the head.
        **options: Passed on to the builder, e.g. `width_mult=0.5` for mobilenet_v2.

    Raises:
        ConfigError: An unknown name, no class, or an option that the builder does not take.
    """
    if name not in BUILDERS:
        raise ConfigError(unknown_name("model", name, BUILDERS))
    if num_classes < 1:
        raise ConfigError(f"need num_classes >= 1, got {num_classes}")
    try:
        return BUILDERS[name](num_classes=num_classes, **options)
    except TypeError as error:
        given = ", ".join(f"{key}={value!r}" for key, value in options.items()) or "none"
        raise ConfigError(f"model {name!r} does not take these options: {given} ({error})") from error
