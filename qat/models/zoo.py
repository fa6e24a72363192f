"""The zoo: float models by name, for Python; on the command line also `model=torchvision model.name=NAME`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from torch import nn

from qat.errors import ConfigError, unknown_name
from qat.models import torchvision
from qat.models.patch_transformer import PatchTransformer
from qat.models.resnet_cifar import resnet20, resnet32, resnet44, resnet56
from qat.models.row_lstm import RowLSTM

OWN: Mapping[str, Callable[..., nn.Module]] = MappingProxyType(
    {
        "patch_transformer": PatchTransformer,
        "resnet20": resnet20,
        "resnet32": resnet32,
        "resnet44": resnet44,
        "resnet56": resnet56,
        "row_lstm": RowLSTM,
    }
)


def names() -> tuple[str, ...]:
    """Names that `build` takes, sorted: the project's own models and every classifier of torchvision."""
    return tuple(sorted({*OWN, *torchvision.NAMES}))


def build(name: str, num_classes: int, **options: Any) -> nn.Module:
    """A float model, in train mode; freshly initialised unless `weights` says otherwise.

    Args:
        name: One of `names()`.
        num_classes: Width of the head.
        **options: Passed on to the builder, e.g. `width_mult=0.5` for mobilenet_v2, `weights="IMAGENET1K_V1"`.

    Raises:
        ConfigError: An unknown name, no class, or an option that the builder does not take.
        CheckpointError: Published weights that cannot be fetched or do not fit.
    """
    if name not in names():
        raise ConfigError(unknown_name("model", name, names()))
    if num_classes < 1:
        raise ConfigError(f"need num_classes >= 1, got {num_classes}")
    if name not in OWN:
        return torchvision.build(name, num_classes, **options)
    try:
        return OWN[name](num_classes=num_classes, **options)
    except TypeError as error:
        given = ", ".join(f"{key}={value!r}" for key, value in options.items()) or "none"
        raise ConfigError(f"model {name!r} does not take these options: {given} ({error})") from error
