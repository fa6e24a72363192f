from __future__ import annotations

import pytest

import qat
from qat.errors import ArtifactError
from qat.runtime import load

pytestmark = pytest.mark.runtime


def test_parity_and_every_layer_to_the_bit(trained, pictures, tmp_path):
    prepared = trained("torch")
    integer = qat.convert(prepared)
    artifact = qat.export(integer, tmp_path / "model.pt2")
    report = qat.verify(prepared, artifact, [pictures], layerwise=True)
    reference, deployed = report.stages[-2:]
    assert deployed.name.startswith("torch 2.")
    assert (deployed.agreement, deployed.max_steps) == (reference.agreement, reference.max_steps)
    assert deployed.agreement >= 99.5
    assert [layer.site for layer in report.layers] == list(artifact.sites)
    assert all(layer.max_steps <= 1 for layer in report.layers)
    assert load(artifact).metadata["target"] == "torch"


def test_truncated_file(integer, tmp_path, caplog):
    artifact = qat.export(integer, tmp_path / "model.pt2", target="torch")
    artifact.path.write_bytes(artifact.path.read_bytes()[:500])
    with pytest.raises(ArtifactError, match=r"torch 2.* refuses model.pt2"):
        load(artifact)
    assert "Traceback" not in caplog.text  # torch logs one of its own


def test_wrong_input_is_explained_in_torchs_words(integer, images, tmp_path):
    run = load(qat.export(integer, tmp_path / "model.pt2", target="torch"))
    with pytest.raises(ArtifactError, match=r"(?s)torch failed on model.pt2: Guard failed: .*x.size"):
        run(images[:, :2])


def test_artefact_of_another_model(prepared, trained, images, tmp_path):
    artifact = qat.export(qat.convert(trained("torch")), tmp_path / "model.pt2")
    with pytest.raises(
        ArtifactError, match=r"model.pt2 is of another model: it stores \d+ values as integers, beginning"
    ):
        qat.verify(prepared, artifact, [images])
