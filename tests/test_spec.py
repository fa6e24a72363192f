from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qat.errors import ConfigError
from qat.spec import Granularity, IntSpec, Scheme

BITS = st.integers(2, 8)


@given(bits=BITS, signed=st.booleans(), narrow=st.booleans())
def test_ends_are_those_of_twos_complement(bits, signed, narrow):
    narrow = narrow and signed
    spec = IntSpec(bits=bits, signed=signed, narrow=narrow)
    assert spec.qmax - spec.qmin + 1 == 2**bits - narrow
    assert spec.qmin == (-(2 ** (bits - 1)) + narrow if signed else 0)
    assert -128 <= spec.qmin <= spec.symmetric_zero_point <= spec.qmax <= 255
    if narrow:
        assert spec.qmin == -spec.qmax


@pytest.mark.parametrize(
    ("spec", "ends", "text"),
    [
        (IntSpec(), (-128, 127), "int8[-128,127] symmetric per_tensor"),
        (IntSpec(bits=7, narrow=True), (-63, 63), "int7[-63,63] symmetric per_tensor"),
        (IntSpec(signed=False, scheme=Scheme.AFFINE), (0, 255), "uint8[0,255] affine per_tensor"),
        (IntSpec(bits=2, granularity=Granularity.PER_CHANNEL), (-2, 1), "int2[-2,1] symmetric per_channel"),
    ],
)
def test_text_and_ends(spec, ends, text):
    assert (spec.qmin, spec.qmax) == ends
    assert str(spec) == text


def test_symmetric_zero_point_of_an_unsigned_grid_is_its_middle():
    assert IntSpec(signed=False).symmetric_zero_point == 128
    assert IntSpec(signed=True).symmetric_zero_point == 0


def test_strings_of_yaml_become_members():
    spec = IntSpec(scheme="affine", granularity="per_channel")
    assert spec.scheme is Scheme.AFFINE
    assert spec.granularity is Granularity.PER_CHANNEL
    assert spec == IntSpec(scheme=Scheme.AFFINE, granularity=Granularity.PER_CHANNEL)


@pytest.mark.parametrize("bits", [1, 0, 9, 16, -8, True, 8.0, "8"])
def test_width_outside_the_range_names_the_value_and_the_rule(bits):
    with pytest.raises(ConfigError, match=rf"need 2 <= bits <= 8, got bits={bits!r}"):
        IntSpec(bits=bits)


def test_unsigned_narrow_is_refused():
    with pytest.raises(ConfigError, match="narrow=True drops the lowest integer of a signed grid; use signed=True"):
        IntSpec(signed=False, narrow=True)


def test_unknown_members_list_the_known_ones():
    with pytest.raises(ConfigError, match="unknown scheme 'afine'; known: affine, symmetric"):
        IntSpec(scheme="afine")
    with pytest.raises(ConfigError, match="unknown granularity 'per_row'; known: per_tensor, per_channel"):
        IntSpec(granularity="per_row")


def test_a_grid_is_a_value():
    assert len({IntSpec(), IntSpec(), IntSpec(bits=4)}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError, match="bits"):
        IntSpec().bits = 4
