"""Weights as integers, activations in float: the same floats in torch and onnxruntime, and a small file."""

from __future__ import annotations

import copy
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

import qat
from qat.errors import ConfigError, PlacementError
from qat.models import PatchTransformer, RowLSTM
from qat.runtime import load

pytestmark = pytest.mark.runtime
CLOSE = 2e-6  # floats summed in another order
INT4, INT8 = onnx.TensorProto.INT4, onnx.TensorProto.INT8


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.table = nn.Conv2d(3, 8, 3), nn.Embedding(4, 8)
        self.rnn, self.fc = nn.GRU(8, 8, batch_first=True), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x).flatten(2).transpose(1, 2)[:, :4] + self.table(torch.arange(4))
        return self.fc(self.rnn(y)[0][:, -1])


MODELS = {
    "transformer": lambda: PatchTransformer(width=32, depth=1, heads=2),
    "lstm": lambda: RowLSTM(hidden=16),
    "mixed": Mixed,
}


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", MODELS)
def test_onnxruntime_computes_with_the_stored_weights(name: str, bits: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = MODELS[name]().eval(), torch.randn(3, 3, 8, 8)
    stored = qat.quantize_weights(model, x, bits=bits)
    reference = stored(x)
    assert not torch.equal(reference, model(x))
    artifact = qat.export(stored, tmp_path / "int8.onnx")
    for optimize in (False, True):
        torch.testing.assert_close(load(artifact, optimize=optimize)(x), reference, atol=CLOSE, rtol=0)
    graph = onnx.load(artifact.path).graph
    kinds = {i.name: i.data_type for i in graph.initializer if len(i.dims) > 1 and "integers" in i.name}
    assert kinds
    assert set(kinds.values()) == {INT4 if bits == 4 else INT8}
    assert not [n for n in graph.node if n.op_type == "DequantizeLinear"]  # onnxruntime would round activations


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_weight_is_on_its_grid(bits: int) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(16, 6)
    stored = qat.quantize_weights(layer, torch.randn(2, 16), bits=bits)
    end = 2 ** (bits - 1) - 1
    scale = layer.weight.abs().amax(1, keepdim=True) / end
    assert torch.equal(stored.weight_integers.float(), (layer.weight / scale).round())
    assert torch.equal(stored.weight, stored.weight_integers * scale)
    assert "weight" not in dict(stored.named_parameters())


def test_it_is_copied_and_saved_like_any_module(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    stored = qat.quantize_weights(RowLSTM(hidden=8), x)
    assert torch.equal(copy.deepcopy(stored)(x), stored(x))
    other = qat.quantize_weights(RowLSTM(hidden=8), x)
    other.load_state_dict(stored.state_dict())
    assert torch.equal(other(x), stored(x))


def test_what_cannot_be_stored() -> None:
    layer, x = nn.Linear(4, 2), torch.randn(2, 4)
    with pytest.raises(ConfigError, match=r"weights of 4 bits are packed as INT4, .* target torch \(runtime torch"):
        qat.quantize_weights(layer, x, bits=4, target="torch")
    old = {**qat.presets.load_preset("target", "onnxruntime"), "opset": 19}
    with pytest.raises(ConfigError, match=r"opset 19\) lacks: use target=onnxruntime, or quant\.weight\.bits=8"):
        qat.quantize_weights(layer, x, bits=3, target=old)
    with pytest.raises(ConfigError, match=r"target openvino takes static int8 alone"):
        qat.quantize_weights(layer, x, target="openvino")
    with pytest.raises(ConfigError, match=r"need 2 <= bits <= 8, got bits=9"):
        qat.quantize_weights(layer, x, bits=9)
    with pytest.raises(PlacementError, match=r"no weights to store as integers in ReLU"):
        qat.quantize_weights(nn.ReLU(), x)
