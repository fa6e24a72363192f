"""Float models and the checkpoints they start from; knows nothing of quantization."""

from __future__ import annotations

from qat.models.checkpoint import LoadReport, load_float
from qat.models.resnet_cifar import ResNetCifar, resnet20, resnet32, resnet44, resnet56
from qat.models.zoo import build, names

__all__ = [
    "LoadReport",
    "ResNetCifar",
    "build",
    "load_float",
    "names",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
]
