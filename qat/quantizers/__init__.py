"""Fake-quant modules: they own a grid's scale and zero point, and call the pure functions."""

from qat.quantizers.base import FakeQuantize
from qat.quantizers.dorefa import DoReFa
from qat.quantizers.lsq import LSQ
from qat.quantizers.lsq_plus import LSQPlus
from qat.quantizers.observed import ObservedFakeQuantize
from qat.quantizers.pact import PACT
from qat.quantizers.trained import TrainedFakeQuantize

__all__ = ["LSQ", "PACT", "DoReFa", "FakeQuantize", "LSQPlus", "ObservedFakeQuantize", "TrainedFakeQuantize"]
