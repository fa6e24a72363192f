"""Integer weights and dynamic ranges, by the public function, run in onnxruntime with and without optimizations."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

import qat
from qat.errors import CaptureError, ConfigError, PlacementError
from qat.layers.dynamic import DynamicLinear
from qat.layers.dynamic_attention import DynamicAttention
from qat.layers.dynamic_recurrent import DynamicLSTM
from qat.models import PatchTransformer, RowLSTM
from qat.runtime import load

pytestmark = pytest.mark.runtime
CLOSE = 2e-6  # sums between the products are floats, in another order: no integer moved
STEP = 0.05  # one step of a grid of 7 bits, and of those of the activations, on weights of this size


class Recurrent(nn.Module):
    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.rnn = layer
        self.fc = nn.Linear(layer.hidden_size * (2 if layer.bidirectional else 1), 4)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.rnn(x)
        return self.fc(y[:, -1])


class Cross(nn.Module):
    """Attention of a query that is not the key, without torch's shortcut for one that is."""

    def __init__(self, **settings: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True, **settings)
        self.narrow = nn.Linear(16, settings.get("kdim", 16))

    def forward(self, x: Tensor) -> Tensor:
        context = self.narrow(x)
        y, _ = self.attention(x, context, context[..., :16] if context.shape[-1] >= 16 else context, need_weights=False)
        return y.mean(1)


MODELS = {
    "lstm": lambda: Recurrent(nn.LSTM(12, 8, num_layers=2, batch_first=True, bidirectional=True)),
    "gru": lambda: Recurrent(nn.GRU(12, 8, batch_first=True)),
    "lstm without biases": lambda: Recurrent(nn.LSTM(12, 8, batch_first=True, bias=False)),
    "cross attention": lambda: Cross(),
    "attention of two widths": lambda: Cross(kdim=12, vdim=12),
}


def build(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    return model, torch.randn(3, 5, 12 if isinstance(model, Recurrent) else 16)


@pytest.mark.parametrize("name", MODELS)
def test_the_reference_is_what_onnxruntime_computes(name: str, tmp_path: Path) -> None:
    model, x = build(name)
    quantized = qat.quantize_dynamic(model, x)
    reference = quantized(x)
    assert (reference - model(x)).abs().max() < STEP
    artifact = qat.export(quantized, tmp_path / "int8.onnx")
    for optimize in (False, True):
        torch.testing.assert_close(load(artifact, optimize=optimize)(x), reference, atol=CLOSE, rtol=0)
    count = Counter(node.op_type for node in onnx.load(artifact.path).graph.node)
    assert count["MatMulInteger"] >= count["DynamicQuantizeLinear"] > 0
    assert not {"LSTM", "GRU", "Gemm"} & set(count)


def test_one_linear_layer_is_equal_to_the_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    quantized = qat.quantize_dynamic(nn.Linear(40, 9), torch.randn(2, 40))
    assert isinstance(quantized, DynamicLinear)
    artifact, x = qat.export(quantized, tmp_path / "int8.onnx"), torch.randn(6, 40) * 3
    for optimize in (False, True):
        assert torch.equal(load(artifact, optimize=optimize)(x), quantized(x))


def test_a_transformer_of_torch_keeps_no_float_product(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = PatchTransformer(width=16, depth=1, heads=2).eval()
    quantized = qat.quantize_dynamic(model, torch.randn(2, 3, 8, 8))
    kinds = Counter(type(m) for m in quantized.modules())
    assert kinds[DynamicLinear] == 5  # embed, out_proj, linear1, linear2, fc
    assert kinds[DynamicAttention] == 1
    x = torch.randn(4, 3, 8, 8)
    with torch.no_grad():  # where torch's closed encoder layer would compute from float weights
        assert torch.equal(quantized(x), quantized.eval()(x))
        assert not torch.equal(quantized(x), model(x))
    artifact = qat.export(quantized, tmp_path / "int8.onnx")
    assert Counter(n.op_type for n in onnx.load(artifact.path).graph.node)["MatMulInteger"] == 6
    torch.testing.assert_close(load(artifact)(x), quantized(x), atol=CLOSE, rtol=0)


def test_the_state_is_taken_and_given_as_the_float_layer_does() -> None:
    torch.manual_seed(0)
    for layer in (nn.LSTM(6, 5, num_layers=2), nn.GRU(6, 5, bidirectional=True)):
        dynamic = qat.quantize_dynamic(layer, torch.randn(4, 2, 6))
        x, state = torch.randn(4, 3, 6), torch.randn(2, 3, 5)
        given = (state, state * 0.5) if isinstance(layer, nn.LSTM) else state
        for mine, theirs in zip(_flat(dynamic(x, given)), _flat(layer(x, given)), strict=True):
            assert mine.shape == theirs.shape
            assert (mine - theirs).abs().max() < STEP
        for mine, theirs in zip(_flat(dynamic(x[:, 0])), _flat(layer(x[:, 0])), strict=True):
            assert mine.shape == theirs.shape
    packed = nn.utils.rnn.pack_padded_sequence(x, [4, 3, 2])
    with pytest.raises(TypeError, match=r"takes tensors; pad sequences instead of packing them"):
        dynamic(packed)


def _flat(result: object) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    return [tensor for part in result for tensor in _flat(part)]  # type: ignore[attr-defined]


def test_an_example_depends_on_its_company() -> None:
    torch.manual_seed(0)
    quantized = qat.quantize_dynamic(nn.Linear(8, 3), torch.randn(2, 8))
    x = torch.randn(2, 8)
    x[1] *= 100
    assert not torch.equal(quantized(x)[:1], quantized(x[:1]))


def test_recipe_exclude_and_override_decide_the_weights() -> None:
    torch.manual_seed(0)
    model = RowLSTM(hidden=16, layers=2)
    quantized = qat.quantize_dynamic(model, torch.randn(2, 3, 8, 8), recipe="w4a8", exclude=["fc"])
    lstm = quantized.lstm
    assert isinstance(lstm, DynamicLSTM)
    assert isinstance(quantized.fc, nn.Linear)
    assert lstm.products["weight_hh_l0"].weight_integers.abs().max() == 63  # the first layer, 8 bits, 7 on this target
    plan = str(quantized.meta["prepared"]["plan"])
    assert "float  fc" in plan
    assert "excluded by 'fc'" in plan
    recipe = qat.QuantRecipe.parse(
        {**qat.presets.load_preset("quant", "w8a8"), "override": {"fc": {"weight": {"bits": 3}}}}
    )
    assert qat.quantize_dynamic(model, torch.randn(2, 3, 8, 8), recipe).fc.weight_integers.abs().max() == 3


@pytest.mark.parametrize("target", ["openvino", "executorch", "inductor", "tensorrt"])
def test_targets_that_cannot_run_it(target: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"runs in onnxruntime and torch, and target {target} takes static int8 alone"
    ):
        qat.quantize_dynamic(nn.Linear(4, 2), torch.randn(2, 4), target=target)


def test_what_cannot_be_quantized() -> None:
    convolution = nn.Conv2d(3, 4, 3)
    with pytest.raises(PlacementError, match=r"nothing to quantize dynamically in Conv2d: .* Use task=ptq or qat"):
        qat.quantize_dynamic(convolution, torch.randn(2, 3, 8, 8))
    with pytest.raises(PlacementError, match=r"exclude leaves nothing to quantize in RowLSTM"):
        qat.quantize_dynamic(RowLSTM(hidden=4), torch.randn(2, 3, 8, 8), exclude=["lstm", "fc"])
    with pytest.raises(CaptureError, match=r"RowLSTM rejects example inputs of shape \(2, 3, 4, 4\)"):
        qat.quantize_dynamic(RowLSTM(hidden=4), torch.randn(2, 3, 4, 4))
    prepared = qat.prepare(convolution, torch.randn(2, 3, 8, 8))
    with pytest.raises(PlacementError, match=r"is prepared for static ranges; give the float model"):
        qat.quantize_dynamic(prepared, torch.randn(2, 3, 8, 8))


def test_recurrent_layers_are_not_for_static_ranges() -> None:
    model, x = RowLSTM(hidden=4), torch.randn(2, 3, 8, 8)
    with pytest.raises(
        PlacementError, match=r"RowLSTM has recurrent layers, lstm, .*Use task=dynamic .*quant.exclude=\[lstm\]"
    ):
        qat.prepare(model, x)
    for settings in ({"exclude": ["lstm"]}, {"placement": "modules"}):
        assert "lstm" not in [op.name for op in qat.prepare(model, x, **settings).plan.ops if op.integer]
