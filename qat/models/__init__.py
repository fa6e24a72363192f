"""Float models and the checkpoints they start from; knows nothing of quantization.

`qat.models.torchvision` and `qat.models.timm` build by name; the latter needs an extra, so it is imported by its
full name.
"""

from __future__ import annotations

from qat.models.checkpoint import LoadReport, load_float
from qat.models.head import head_of
from qat.models.patch_transformer import PatchTransformer
from qat.models.preprocessing import Preprocessing
from qat.models.resnet_cifar import ResNetCifar, resnet20, resnet32, resnet44, resnet56
from qat.models.row_lstm import RowLSTM
from qat.models.source import ModelSource
from qat.models.zoo import build, names

__all__ = [
    "LoadReport",
    "ModelSource",
    "PatchTransformer",
    "Preprocessing",
    "ResNetCifar",
    "RowLSTM",
    "build",
    "head_of",
    "load_float",
    "names",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
]
