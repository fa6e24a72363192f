from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor

import qat
from qat.artifact import Artifact
from qat.audit import audit, require_sound, weight_grids
from qat.errors import ArtifactError
from qat.runtime import EXTRAS, Runtime, load


@pytest.fixture
def integer(small_net, images) -> torch.fx.GraphModule:
    prepared = qat.prepare(small_net, images[:2])
    qat.calibrate(prepared, [images])
    return qat.convert(prepared)


@pytest.mark.runtime
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")  # imports
@pytest.mark.parametrize(
    "target",
    [
        *("onnxruntime", "onnxruntime_vnni", "torch", "openvino", "tensorrt", "executorch"),
        pytest.param("inductor", marks=pytest.mark.slow),  # C++
    ],
)
def test_an_export_is_sound_at_every_batch_size(small_net, images, tmp_path, target):
    target = qat.Target.parse(target)
    if target.runtime in EXTRAS:
        pytest.importorskip(EXTRAS[target.runtime], reason=f"the extra `{target.runtime}` is not installed")
    prepared = qat.prepare(small_net, images[:2], target=target)
    qat.calibrate(prepared, [images])
    model = qat.convert(prepared)
    artifact = qat.export(model, tmp_path / f"model{target.artifact}", metadata={"data": "digits"})
    runtime = load(artifact, threads=1)
    assert audit(artifact, runtime=runtime, example=images, integer=model) == ()
    require_sound(artifact, require=("model", "data"))
    with pytest.raises(ArtifactError, match="does not pass its audit: the metadata lacks top1"):
        require_sound(artifact, require=("model", "top1"))


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


def renamed(model: onnx.ModelProto) -> None:
    old, model.graph.input[0].name = model.graph.input[0].name, "pixels"
    for node in model.graph.node:
        node.input[:] = ["pixels" if name == old else name for name in node.input]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_scale, "a scale that is 0, negative, NaN or Inf"),
        (wide_weight, r"weight stem\.weight: -\d+ \.\. 127 is outside its grid -63 \.\. 63"),
        (unused, "initializers that nothing reads: left_over"),
        (no_metadata, "the file itself does not say model, recipe, fingerprint, target"),
        (newer, "opset 22, need 21"),
        (renamed, "its inputs are called pixels in the file, need x"),
    ],
)
def test_what_the_audit_finds(integer, tmp_path, damage: Callable[[onnx.ModelProto], None], message):
    artifact = qat.export(integer, tmp_path / "model.onnx")
    model = onnx.load(artifact.path)
    damage(model)
    onnx.save(model, artifact.path)
    with pytest.raises(ArtifactError, match=rf"model\.onnx does not pass its audit: .*{message}"):
        require_sound(artifact, integer=integer)


def test_grids_of_a_model_whose_file_does_not_show_them(integer, tmp_path):
    artifact = qat.export(integer, tmp_path / "model.pt2", target="torch")
    assert audit(artifact, integer=integer) == ()
    assert weight_grids(integer)["stem.weight"] == (-63, 63)
    integer.get_buffer("stem.weight")[0, 0, 0, 0] = 64
    integer.get_buffer("stem.weight_scale")[1] = 0
    first = next(
        n for n in integer.graph.nodes if n.target is torch.ops.quantized_decomposed.quantize_per_tensor.default
    )
    first.update_arg(1, float("nan"))
    found = audit(artifact, integer=integer)
    assert any("weight stem.weight: " in line and "outside its grid -63 .. 63" in line for line in found)
    assert "weight stem.weight: a scale that is 0, negative, NaN or Inf" in found
    assert f"{first.name}: a scale of nan" in found


@pytest.mark.parametrize("value", [65, -65])
def test_seven_bits_without_the_model(integer, tmp_path, value):
    artifact = qat.export(integer, tmp_path / "model.onnx")
    assert audit(artifact) == ()
    model = onnx.load(artifact.path)
    constant = next(i for i in model.graph.initializer if i.name == "stem.weight")
    weight = numpy_helper.to_array(constant).copy()
    weight.flat[0] = value
    constant.CopyFrom(numpy_helper.from_array(weight, constant.name))
    onnx.save(model, artifact.path)
    assert any(line.endswith("is outside its grid -64 .. 64") for line in audit(artifact))


def test_weights_of_four_bits_that_are_packed(small_net, images, tmp_path):
    prepared = qat.prepare(small_net, images[:2], "w4a8")
    qat.calibrate(prepared, [images])
    integer = qat.convert(prepared)
    artifact = qat.export(integer, tmp_path / "model.onnx")
    assert audit(artifact, integer=integer) == ()
    model = onnx.load(artifact.path)
    constant = next(i for i in model.graph.initializer if i.name.endswith("weight_int4"))
    weight = numpy_helper.to_array(constant).copy()
    weight.flat[0] = -8  # in four bits, but not on the narrow grid
    constant.CopyFrom(numpy_helper.from_array(weight, constant.name))
    onnx.save(model, artifact.path)
    (found,) = audit(artifact, integer=integer)
    assert found.startswith(f"weight {constant.name.removesuffix('_int4')}: -8 .. ")
    assert found.endswith("is outside its grid -7 .. 7")


class Baked(Runtime):
    """A model that sums over its batch, and takes two examples at most."""

    name = "baked"

    def __init__(self, artifact: Artifact, model: torch.nn.Module) -> None:
        super().__init__(artifact)
        self.model, self.metadata = model, artifact.metadata

    def __call__(self, *x: Tensor) -> Tensor:
        if len(x[0]) > 2:
            raise ArtifactError("of two at most")
        return self.model(*x) * len(x[0])


def test_a_batch_size_that_fails_or_mixes_examples(integer, images, tmp_path):
    artifact = qat.export(integer, tmp_path / "model.onnx")
    found = audit(artifact, runtime=Baked(artifact, integer), example=images)
    assert "batch size 7 fails: of two at most" in found
    assert "batch size 2 gives another result for the same example" in found


def test_truncated_and_unlabelled(integer, tmp_path):
    artifact = qat.export(integer, tmp_path / "model.onnx")
    assert "the metadata lacks recipe" in audit(replace(artifact, metadata={"model": "SmallNet"}))
    whole = artifact.path.read_bytes()
    for damaged in (whole[:500], whole.replace(b"stem", b"st\xffm", 1)):
        artifact.path.write_bytes(damaged)
        assert any("the ONNX checker rejects it" in line for line in audit(artifact))
