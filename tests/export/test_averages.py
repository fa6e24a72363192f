"""Average pooling: what a file would compute otherwise is refused, all else agrees."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import qat
from qat.errors import ExportError


def prepared_with(pool, size):
    images = torch.randn(16, 3, size, size)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), pool, nn.Conv2d(8, 4, 3), nn.Flatten(2))
    model.append(nn.AdaptiveAvgPool1d(1)).append(nn.Flatten())
    prepared = qat.prepare(model.eval(), images[:2])
    qat.calibrate(prepared, [images])
    return prepared.eval(), images


def test_a_divisor_of_its_own(tmp_path):
    prepared, images = prepared_with(nn.AvgPool2d(2, divisor_override=1), 8)
    with pytest.raises(ExportError, match=r"divisor_override=1, which ONNX cannot say; leave it out"):
        qat.export(qat.convert(prepared), tmp_path / "model.onnx")
    with pytest.raises(ExportError, match="divisor_override=1"):
        qat.export(nn.AvgPool2d(2, divisor_override=1), tmp_path / "float.onnx", (images[:2],))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("pool", [nn.AvgPool2d(2, ceil_mode=True), nn.AvgPool2d(3, 2, padding=1, ceil_mode=True)])
@pytest.mark.runtime
def test_a_window_past_the_end(tmp_path, pool):
    whole = 14 if pool.padding == 0 else 15
    prepared, images = prepared_with(pool, whole)
    report = qat.verify(prepared, qat.export(qat.convert(prepared), tmp_path / "whole.onnx"), [images])
    rounding = 1.5
    assert report.stages[-1].max_steps < rounding
    prepared, _ = prepared_with(pool, whole + 1)
    with pytest.raises(ExportError, match=rf"ceil_mode=True on a size of \({whole + 1}, {whole + 1}\) leaves a window"):
        qat.export(qat.convert(prepared), tmp_path / "model.onnx")
