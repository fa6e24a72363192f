"""Quantizers for layers that are built by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from qat.observers import MinMax
from qat.quantizers import ObservedFakeQuantize
from qat.spec import IntSpec


@pytest.fixture
def weight_quantizer() -> Callable[..., ObservedFakeQuantize]:
    """`weight_quantizer(channels)` per channel, `weight_quantizer()` with one scale."""

    def make(channels: int | None = None, bits: int = 8) -> ObservedFakeQuantize:
        granularity = "per_tensor" if channels is None else "per_channel"
        spec = IntSpec(bits=bits, narrow=True, granularity=granularity)
        return ObservedFakeQuantize(spec, lambda **k: MinMax(latest=True, **k), channels=channels)

    return make


@pytest.fixture
def activation_quantizer() -> Callable[[], ObservedFakeQuantize]:
    return lambda: ObservedFakeQuantize(IntSpec(signed=False, scheme="affine"), MinMax)
