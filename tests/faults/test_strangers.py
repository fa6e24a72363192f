"""Checkpoints from strangers: whatever the bytes, a state dict of dense tensors or one `CheckpointError`."""

from __future__ import annotations

import io
import os
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from qat.errors import CheckpointError
from qat.models.state_file import read_state

STATE = {"conv.weight": torch.arange(12.0).reshape(3, 4), "conv.bias": torch.ones(3), "norm.steps": torch.tensor(7)}


def saved(**options) -> bytes:
    buffer = io.BytesIO()
    torch.save({"state_dict": STATE, "epoch": 3}, buffer, **options)
    return buffer.getvalue()


FORMS = {
    "zip": saved(),
    "legacy": saved(_use_new_zipfile_serialization=False),
    "safetensors": save(STATE),
}
damages = st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), max_size=6)


def reads_or_refuses(content: bytes) -> None:
    handle, name = tempfile.mkstemp(suffix=".ckpt")
    os.close(handle)
    path = Path(name)
    try:
        path.write_bytes(content)
        try:
            tensors = read_state(path).tensors
        except CheckpointError as error:
            assert str(path) in str(error)  # noqa: PT017  (either outcome is right)
        else:
            assert all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in tensors.items())
    finally:
        path.unlink()


def damaged(form: str, damage: list[tuple[int, int]], cut: float) -> bytes:
    content = bytearray(FORMS[form])
    for position, value in damage:
        content[position % len(content)] = value
    return bytes(content[: round(cut * len(content))])


@given(st.sampled_from(sorted(FORMS)), damages, st.sampled_from([1.0, 1.0, 1.0, 0.9, 0.5]))
def test_damaged_bytes(form, damage, cut):
    reads_or_refuses(damaged(form, damage, cut))


@pytest.mark.slow
@settings(max_examples=10_000)
@given(st.sampled_from(sorted(FORMS)), damages, st.sampled_from([1.0, 1.0, 1.0, 0.9, 0.5]))
def test_damaged_bytes_ten_thousand_times(form, damage, cut):
    reads_or_refuses(damaged(form, damage, cut))


@given(st.binary(max_size=200))
def test_any_bytes(content):
    reads_or_refuses(content)


def test_a_flood_of_keys_is_listed_short(tmp_path):
    torch.save({f"key{i}": i for i in range(100_000)}, tmp_path / "flood.ckpt")
    with pytest.raises(CheckpointError, match=r"'key7' is of type int and 99,?992 more") as caught:
        read_state(tmp_path / "flood.ckpt")
    assert len(str(caught.value)) < 1_000
