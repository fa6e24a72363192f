"""Fake-quant modules: they own a grid's scale and zero point, and call the pure functions."""

from qat.quantizers.base import FakeQuantize
from qat.quantizers.observed import ObservedFakeQuantize

__all__ = ["FakeQuantize", "ObservedFakeQuantize"]
