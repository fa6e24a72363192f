from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import qat
from qat.errors import ArtifactError
from qat.export.audit import audit, require_sound
from qat.runtime import load


@pytest.mark.runtime
@pytest.mark.parametrize("file", ["model.onnx", "model.pt2"])
def test_an_export_is_sound_at_every_batch_size(integer, images, tmp_path, file):
    artifact = qat.export(integer, tmp_path / file)
    assert audit(artifact, run=load(artifact, threads=1), example=images) == ()
    require_sound(artifact)


def no_scale(model: onnx.ModelProto) -> None:
    node = next(n for n in model.graph.node if n.op_type == "QuantizeLinear")
    constant = next(i for i in model.graph.initializer if i.name == node.input[1])
    constant.CopyFrom(numpy_helper.from_array(np.float32("nan").reshape(()), constant.name))


def wide_weight(model: onnx.ModelProto) -> None:
    constant = next(i for i in model.graph.initializer if i.name == "stem.weight")
    value = numpy_helper.to_array(constant).copy()
    value.flat[0] = 127
    constant.CopyFrom(numpy_helper.from_array(value, constant.name))


def unused(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(3, np.float32), "left_over"))


def no_metadata(model: onnx.ModelProto) -> None:
    del model.metadata_props[:]


def newer(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 22


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_scale, "a scale that is 0, negative, NaN or Inf"),
        (wide_weight, r"weight stem\.weight: 127 is outside the grid of \+-64"),
        (unused, "initializers that nothing reads: left_over"),
        (no_metadata, "the file itself does not say model, recipe, fingerprint, target"),
        (newer, "opset 22, need 21"),
    ],
)
def test_what_the_audit_finds(integer, tmp_path, damage: Callable[[onnx.ModelProto], None], message):
    artifact = qat.export(integer, tmp_path / "model.onnx")
    model = onnx.load(artifact.path)
    damage(model)
    onnx.save(model, artifact.path)
    with pytest.raises(ArtifactError, match=rf"model\.onnx does not pass its audit: .*{message}"):
        require_sound(artifact)


def test_a_batch_size_that_fails_or_mixes_examples(integer, images, tmp_path):
    artifact = qat.export(integer, tmp_path / "model.onnx")

    def baked(x):
        if len(x) > 2:
            raise ArtifactError("of two at most")
        return integer(x) * len(x)

    found = audit(artifact, run=baked, example=images)
    assert "batch size 7 fails: of two at most" in found
    assert "batch size 2 gives another result for the same example" in found


def test_truncated_and_unlabelled(integer, tmp_path):
    artifact = qat.export(integer, tmp_path / "model.onnx")
    assert "the metadata lacks recipe" in audit(replace(artifact, metadata={"model": "SmallNet"}))
    artifact.path.write_bytes(artifact.path.read_bytes()[:500])
    assert any("the ONNX checker rejects it" in line for line in audit(artifact))
