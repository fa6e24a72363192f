from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import qat
from qat.errors import ArtifactError, ConfigError
from qat.models import build
from qat.runtime import load
from qat.verify import output_step

# steps of the output: single integers depart on a CPU with AVX2 alone, and weights without training pass that on; the
# first node was not traced (docs/log.md)
FLIPS = 4.0
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


class Joined(nn.Module):
    """Six values, each of another range, one of them negative throughout, beside all of them again."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Conv2d(3, 2, 1) for _ in range(6))
        self.last = nn.Conv2d(24, 4, 1)

    def forward(self, x):
        values = [branch(x) * 3**i for i, branch in enumerate(self.branches)]
        joined = torch.cat([-F.relu(values[0]), *values[1:]], 1)
        return self.last(torch.hstack((joined, F.relu(joined)))).mean((2, 3))


class Attention(nn.Module):
    """Heads, 1 / sqrt(d), a bias from a table, padding of a value in float: what Swin and MaxViT have."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(16, 16) for _ in range(4))
        self.norm = nn.LayerNorm(16)
        self.table = nn.Parameter(torch.randn(9, 2))
        self.register_buffer("index", torch.randint(9, (36,)))

    def forward(self, x):
        x = F.pad(self.norm(x), (0, 0, 0, 1))  # [N, 6, 16]
        q, k, v = (layer(x).reshape(-1, 6, 2, 8).transpose(1, 2) for layer in (self.q, self.k, self.v))
        bias = self.table[self.index].view(6, 6, 2).permute(2, 0, 1).unsqueeze(0)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.out(y.transpose(1, 2).reshape(-1, 6, 16))


@pytest.mark.parametrize(("build", "shape"), [(Joined, (8, 3, 6, 6)), (Attention, (8, 5, 16))])
def test_concatenation_and_attention_in_one_call_and_at_most_a_step(build, shape, tmp_path):
    x = torch.randn(shape)
    prepared = qat.prepare(build(), x[:2], target="executorch")
    qat.calibrate(prepared, [x])
    integer = qat.convert(prepared)
    run = load(qat.export(integer, tmp_path / "model.pte"))
    assert run.coverage().delegates == 1
    step = output_step(integer)  # softmax is float, and its last bits decide ties
    for batch in (1, 7):
        wanted = integer(x[:batch])
        assert wanted.abs().max() > 20 * step
        torch.testing.assert_close(run(x[:batch]), wanted, rtol=0, atol=1.01 * step)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18", "resnet20"])
def test_one_delegate_call_on_whole_models_and_few_steps(name, exactly, tmp_path):
    model = build(name, 10).eval()
    x = torch.rand(8, 3, 32, 32) * 2 - 1
    prepared = qat.prepare(model, x[:2], target="executorch")
    qat.calibrate(prepared, [x])
    integer = qat.convert(prepared)
    run = load(qat.export(integer, tmp_path / "model.pte"))
    coverage = run.coverage()
    assert (coverage.delegates, coverage.in_float) == (1, ())
    step = output_step(integer)
    for batch in (1, 7):
        steps = (run(x[:batch]) - exactly(integer, x[:batch])).abs() / step
        assert steps.max() <= FLIPS
        assert steps.mean() <= 0.5


def test_narrow_activations_are_refused_before_training(small_net, images):
    recipe = qat.QuantRecipe.parse("w8a8")
    narrow = {**vars(recipe), "activation": type(recipe.activation)(**{**vars(recipe.activation), "bits": 4})}
    with pytest.raises(ConfigError, match="target executorch stores activations of 8 bits, and recipe w8a4 has 4"):
        qat.prepare(small_net, images[:2], qat.QuantRecipe(**{**narrow, "name": "w8a4"}), "executorch")
