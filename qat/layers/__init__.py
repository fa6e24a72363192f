"""Float layers with quantizers in them: same names, parameters and state dict keys as the layers they replace."""

from qat.layers.batchnorm import FakeQuantBatchNorm1d, FakeQuantBatchNorm2d, FakeQuantBatchNorm3d
from qat.layers.conv import FakeQuantConv1d, FakeQuantConv2d, FakeQuantConv3d
from qat.layers.functional import FakeQuantFunction
from qat.layers.linear import FakeQuantLinear
from qat.layers.weighted import FakeQuantWeight

__all__ = [
    "FakeQuantBatchNorm1d",
    "FakeQuantBatchNorm2d",
    "FakeQuantBatchNorm3d",
    "FakeQuantConv1d",
    "FakeQuantConv2d",
    "FakeQuantConv3d",
    "FakeQuantFunction",
    "FakeQuantLinear",
    "FakeQuantWeight",
]
