from __future__ import annotations

import pytest

from qat.errors import CalibrationError
from qat.observers import MinMax
from qat.quantizers import FakeQuantize, ObservedFakeQuantize
from qat.spec import IntSpec


def test_the_base_class_is_abstract():
    with pytest.raises(TypeError, match=r"abstract methods? '?calibrated"):
        FakeQuantize(IntSpec())


def test_per_channel_needs_the_number_of_channels():
    with pytest.raises(ValueError, match="a per-channel quantizer needs the number of channels"):
        ObservedFakeQuantize(IntSpec(granularity="per_channel"), MinMax)


def test_the_error_of_an_unobserved_range_names_the_layer_and_the_way_out():
    with pytest.raises(CalibrationError, match=r"range of 'fc\.weight_quantizer' was never observed.*qat\.calibrate"):
        ObservedFakeQuantize(IntSpec(), MinMax).require_calibrated("fc.weight_quantizer")


def test_grid_and_switches_are_in_the_repr():
    quantizer = ObservedFakeQuantize(IntSpec(bits=4), MinMax)
    quantizer.enabled = False
    assert "int4[-8,7] symmetric per_tensor, enabled=False, observing=True" in repr(quantizer)
