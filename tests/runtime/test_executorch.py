from __future__ import annotations

import pytest
import torch

import qat
from qat.errors import ArtifactError, ConfigError
from qat.models import build
from qat.runtime import load
from qat.verify import output_step

pytest.importorskip("executorch", reason="the extra `executorch` is not installed")
pytestmark = [
    pytest.mark.runtime,
    # executorch 1.5, its own imports
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def test_one_delegate_call_on_blocks_of_known_nets_and_every_bit(trained, pictures, exactly, tmp_path):
    prepared = trained("executorch")
    integer = qat.convert(prepared)
    artifact = qat.export(integer, tmp_path / "model.pte")
    run = load(artifact)
    assert run.metadata["target"] == "executorch"
    coverage = run.coverage()
    assert (coverage.delegates, coverage.in_float) == (1, ())
    for batch in (1, 2, 7, 64):
        x = pictures[:batch]
        torch.testing.assert_close(run(x), exactly(integer, x), rtol=0, atol=1e-5)
    report = qat.verify(prepared, artifact, [pictures])
    assert report.stages[-1].agreement >= 99.5
    content = artifact.path.read_bytes()
    artifact.path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ArtifactError, match=r"executorch .* refuses model.pte"):
        load(artifact)
    with pytest.raises(
        ArtifactError, match=r"failed on model.pte: .*; given \(9, 4, 16, 16\), it takes \(128, 3, 16, 16\) at"
    ):
        run(torch.randn(9, 4, 16, 16))


def test_more_examples_than_the_program_takes_go_in_parts(small_net, tmp_path):
    x = torch.randn(2, 3, 16, 16)
    prepared = qat.prepare(small_net, x, target="executorch")
    qat.calibrate(prepared, [x])
    integer = qat.convert(prepared)
    run = load(qat.export(integer, tmp_path / "model.pte"))
    many = torch.randn(300, 3, 16, 16)
    torch.testing.assert_close(run(many), torch.cat([run(many[:128]), run(many[128:256]), run(many[256:])]))
    assert len(run(many)) == 300


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18", "resnet20"])
def test_one_delegate_call_on_whole_models_and_at_most_a_step(name, exactly, tmp_path):
    model = build(name, 10).eval()
    x = torch.rand(8, 3, 32, 32) * 2 - 1
    prepared = qat.prepare(model, x[:2], target="executorch")
    qat.calibrate(prepared, [x])
    integer = qat.convert(prepared)
    run = load(qat.export(integer, tmp_path / "model.pte"))
    coverage = run.coverage()
    assert (coverage.delegates, coverage.in_float) == (1, ())
    step = output_step(integer)  # a mean of 64 integers often lies in the middle between two
    for batch in (1, 7):
        torch.testing.assert_close(run(x[:batch]), exactly(integer, x[:batch]), rtol=0, atol=1.01 * step)


def test_narrow_activations_are_refused_before_training(small_net, images):
    recipe = qat.QuantRecipe.parse("w8a8")
    narrow = {**vars(recipe), "activation": type(recipe.activation)(**{**vars(recipe.activation), "bits": 4})}
    with pytest.raises(ConfigError, match="target executorch stores activations of 8 bits, and recipe w8a4 has 4"):
        qat.prepare(small_net, images[:2], qat.QuantRecipe(**{**narrow, "name": "w8a4"}), "executorch")
