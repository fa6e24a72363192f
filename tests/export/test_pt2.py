from __future__ import annotations

import pytest
import torch

import qat
from qat.errors import ArtifactError
from qat.runtime import load


def test_runs_as_the_integer_model_does_bit_for_bit(integer, images, tmp_path):
    run = load(qat.export(integer, tmp_path / "model.pt2"))
    for batch in (1, 2, 7, 16):
        torch.testing.assert_close(run(images[:batch]), integer(images[:batch]), rtol=0, atol=0)


def test_truncated_file(integer, tmp_path):
    artifact = qat.export(integer, tmp_path / "model.pt2")
    artifact.path.write_bytes(artifact.path.read_bytes()[:1000])
    with pytest.raises(ArtifactError, match=r"torch .* refuses model.pt2"):
        load(artifact)
