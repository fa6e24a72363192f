from __future__ import annotations

from itertools import product

from qat.data.streams import Stream, stream_seed


def test_no_two_keys_share_a_seed():
    keys = list(product(Stream, range(4), range(4), range(4)))
    assert len({stream_seed(*key) for key in keys}) == len(keys)


def test_a_seed_stays_what_it_was():
    assert stream_seed(Stream.ORDER, 0) == 1835504127  # runs of older versions keep their order
