from __future__ import annotations

import json
import re

import pytest
import torch
from torch import nn

import qat
from qat.errors import ArtifactError
from qat.runtime import load
from qat.verify import output_step

pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
pytestmark = pytest.mark.runtime

# As onnxruntime: integers are exact, the sums between them are float32; a value in the middle may fall to either side.
FLIPS = 0.005


def test_parity_on_blocks_of_known_nets(trained, pictures, tmp_path):
    prepared = trained("openvino")
    artifact = qat.export(qat.convert(prepared), tmp_path / "model.xml")
    report = qat.verify(prepared, artifact, [pictures], layerwise=True)
    assert report.stages[-1].name.startswith("openvino 20")
    assert report.stages[-1].agreement >= 99.5
    assert report.stages[-1].max_steps < 2.5
    assert not {s for s in artifact.sites if s.endswith(("project_norm", "norm2"))}  # rounded behind the sum alone
    moved = {"maxpool", "flatten"}  # on the grid of what they move
    assert [layer.site for layer in report.layers] == [site for site in artifact.sites if site not in moved]
    assert max(layer.max_steps for layer in report.layers) <= 2
    assert report.layers[0].off == 0  # the input: one rounding, no sum
    assert all(layer.off <= FLIPS for layer in report.layers[:-1])  # the logits are a few hundred values
    coverage = load(artifact).coverage()
    assert coverage.in_float == ()
    assert sum("Convolution" in o.op for o in coverage.integer) == sum(
        isinstance(m, torch.nn.Conv2d) for m in prepared.modules()
    )


def test_a_model_that_rounds_before_its_sums_departs_at_the_first(trained, pictures, tmp_path):
    prepared = trained("onnxruntime")
    artifact = qat.export(qat.convert(prepared), tmp_path / "model.xml", target="openvino")
    report = qat.verify(prepared, artifact, [pictures], strict=False, layerwise=True)
    assert report.hint.startswith("OpenVINO rounds a convolution and the sum behind it once")
    layers = report.layers
    first = next(i for i, layer in enumerate(layers) if "add" in layer.site)
    assert all(layer.off <= FLIPS for layer in layers[:first])
    assert layers[first].off > 0.05  # it reads a convolution that was not rounded


@pytest.mark.parametrize(
    "curve",
    [nn.SiLU(), nn.Hardswish(), nn.GELU(), nn.GELU("tanh"), nn.Sigmoid(), nn.Hardsigmoid(), nn.Tanh(), nn.ELU(),
     nn.LeakyReLU(0.1)],
    ids=lambda m: str(m).lower(),
)  # fmt: skip
@pytest.mark.parametrize("kind", ["convolutions", "linear"])
def test_a_curve_runs_inside_the_layer_before_it(curve, kind, tmp_path):
    torch.manual_seed(0)
    if kind == "linear":
        model, x = nn.Sequential(nn.Linear(32, 64), curve, nn.Linear(64, 10)), torch.randn(64, 9, 32)
    else:
        model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), curve, nn.Conv2d(16, 32, 3, 2), curve)
        x = torch.randn(64, 3, 16, 16)
    prepared = qat.prepare(model.eval(), x[:2], "w8a8", "openvino")
    qat.calibrate(prepared, [x])
    integer = qat.convert(prepared)
    artifact = qat.export(integer, tmp_path / "model.xml")
    runtime = load(artifact, threads=1)
    assert len(runtime.intermediates(x)) == 3  # the input, and each layer with its curve
    steps = ((runtime(x) - integer(x)) / output_step(integer)).abs().round()
    assert steps.max() <= 1
    assert (steps > 0).float().mean() <= FLIPS
    coverage = runtime.coverage()
    assert (len(coverage.integer), coverage.in_float, coverage.islands) == (2, (), ())
    assert prepared.plan.in_float == ()


def test_the_graph_is_written_short(integer, tmp_path):
    artifact = qat.export(integer, tmp_path / "model.xml", target="openvino")
    graph = artifact.path.read_text()
    assert not {"\n", "\t"} & set(graph[graph.index("<net") :].strip())
    assert "<dim>" not in graph  # inferred
    assert sorted(set(re.findall(r'names="([^"]*)"', graph))) == ["output", "x"]
    assert artifact.sites[0] in graph
    assert 'type="i32"' not in graph  # biases in float: no scale, no operator
    quantizers = graph.count('type="FakeQuantize"')
    assert graph.count('element_type="f32" shape=""') + graph.count('shape="1, 1, 1, 1" offset') <= 2 * quantizers + 8


def test_any_batch_size_and_two_files(integer, images, tmp_path):
    artifact = qat.export(integer, tmp_path / "model.xml", target="openvino")
    assert [path.name for path in artifact.files] == ["model.xml", "model.bin"]
    assert artifact.size_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    run = load(artifact, threads=1)
    for batch in (1, 2, 7, 64):
        x = images[:1].expand(batch, -1, -1, -1)
        assert (run(x) - integer(x)).abs().max() <= 1.01 * output_step(integer)


def test_the_graph_says_what_it_is(integer, tmp_path):
    artifact = qat.export(integer, tmp_path / "model.xml", target="openvino", metadata={"data": "digits"})
    about = load(artifact).metadata
    assert (about["target"], about["recipe"], about["model"], about["data"]) == (
        "openvino",
        "w8a8",
        "SmallNet",
        "digits",
    )
    assert tuple(json.loads(about["sites"])) == artifact.sites


def test_narrow_activations_are_clamped_too(small_net, images, tmp_path):
    prepared = qat.prepare(small_net, images[:2], "w8a8", "openvino")
    recipe = prepared.recipe
    narrow = {**vars(recipe), "activation": type(recipe.activation)(**{**vars(recipe.activation), "bits": 4})}
    prepared = qat.prepare(small_net, images[:2], qat.QuantRecipe(**{**narrow, "name": "w8a4"}), "openvino")
    qat.calibrate(prepared, [images])
    integer = qat.convert(prepared)
    run = load(qat.export(integer, tmp_path / "model.xml"))
    beyond = 3 * images
    assert (run(beyond) - integer(beyond)).abs().max() < 1.5 * output_step(integer)


def test_truncated_and_missing_files(integer, tmp_path):
    artifact = qat.export(integer, tmp_path / "model.xml", target="openvino")
    graph = artifact.path.read_bytes()
    artifact.path.write_bytes(graph[:500])
    with pytest.raises(ArtifactError, match=r"openvino .* refuses model.xml"):
        load(artifact)
    artifact.path.write_bytes(graph)
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"openvino .* refuses model.xml"):
        load(artifact)


def test_an_onnx_file_under_its_name(integer, tmp_path):
    artifact = qat.export(integer, tmp_path / "model.xml", target="openvino")
    qat.export(integer, tmp_path / "model.onnx", target="onnxruntime").path.replace(artifact.path)
    with pytest.raises(ArtifactError, match=r"openvino .* refuses model.xml: it is no XML, so no IR"):
        load(artifact)


def test_wrong_input_is_explained_in_the_runtimes_words(integer, tmp_path):
    run = load(qat.export(integer, tmp_path / "model.xml", target="openvino"))
    with pytest.raises(ArtifactError, match=r"(?s)openvino failed on model.xml: .*shape=\(1.4.8.8\)"):
        run(torch.randn(1, 4, 8, 8))
