"""Linear layers as products of rows: one integer kernel each, and no batch size inside."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

import qat
from qat.runtime import load

pytestmark = pytest.mark.runtime


class Tokens(nn.Module):
    """Two linear layers over `[N, T, C]`, or over `[T, N, C]`."""

    def __init__(self, *, examples_first: bool) -> None:
        super().__init__()
        self.a, self.b, self.examples_first = nn.Linear(6, 8), nn.Linear(8, 5), examples_first

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.examples_first else x.transpose(0, 1)
        x = self.b(torch.relu(self.a(x)))
        return x.mean(1 if self.examples_first else 0)


@pytest.mark.parametrize("examples_first", [True, False])
def test_any_batch_size(tmp_path: Path, examples_first: bool) -> None:
    x = torch.randn(16, 3, 6)
    prepared = qat.prepare(Tokens(examples_first=examples_first).eval(), x[:2])
    qat.calibrate(prepared, [x])
    integer = qat.convert(prepared)
    run = load(qat.export(integer, tmp_path / "model.onnx"))
    for n in (1, 2, 5, 16):
        torch.testing.assert_close(run(x[:n]), integer(x[:n]), rtol=0, atol=1e-6)
    reshapes = sum(node.op_type == "Reshape" for node in onnx.load(tmp_path / "model.onnx").graph.node)
    assert bool(reshapes) == examples_first
