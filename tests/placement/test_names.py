"""Layers of a model that bear the names of torch.fx's own attributes, or of a prepared model's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import qat
from qat.errors import PlacementError


class Named(nn.Module):
    """Layers under any names, one after the other."""

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.children():
            x = layer(x)
        return x


@pytest.mark.runtime
@pytest.mark.parametrize("name", ["meta", "graph", "code", "shape_env", "recompile"])
def test_names_of_a_graph_module(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Named(stem=nn.Conv2d(1, 8, 3), norm=nn.BatchNorm2d(8), **{name: nn.Conv2d(8, 8, 3)}, act=nn.GELU()).eval()
    x = torch.randn(4, 1, 8, 8)
    prepared = qat.prepare(model, x)
    qat.calibrate(prepared, [x])
    artifact = qat.export(qat.convert(prepared), tmp_path / "model.onnx")
    assert qat.verify(prepared, artifact, [x], layerwise=True).passed


@pytest.mark.parametrize("act", [nn.GELU(), nn.LayerNorm(6)])
def test_a_float_layer_of_such_a_name(act: nn.Module) -> None:
    x = torch.randn(4, 1, 8, 8)
    prepared = qat.prepare(Named(conv=nn.Conv2d(1, 8, 3), graph=act, code=nn.Conv2d(8, 4, 3)).eval(), x)
    qat.calibrate(prepared, [x])
    integer = qat.convert(prepared)
    assert "graph_" in dict(integer.named_modules())
    torch.testing.assert_close(integer(x), prepared(x), atol=0.05, rtol=0)  # a step or two


@pytest.mark.parametrize("name", ["plan", "recipe", "target", "units"])
@pytest.mark.parametrize("placement", ["graph", "modules"])
def test_names_of_a_prepared_model(name: str, placement: str) -> None:
    model = Named(**{name: nn.Conv2d(1, 8, 3)}).eval()
    with pytest.raises(PlacementError, match=rf"Named\.{name} bears the name of an attribute of the prepared model"):
        qat.prepare(model, torch.randn(2, 1, 8, 8), placement=placement)


def test_names_that_are_free() -> None:
    x = torch.randn(4, 1, 8, 8)
    layers = {"root": nn.Conv2d(1, 8, 3), "code": nn.GELU(), "code_": nn.ELU(3.0), "meta": nn.Conv2d(8, 8, 1)}
    prepared = qat.prepare(Named(**layers, meta_=nn.Conv2d(8, 8, 1)).eval(), x)
    qat.calibrate(prepared, [x])
    integer = qat.convert(prepared)
    torch.testing.assert_close(integer(x), prepared(x), atol=0.05, rtol=0)  # a step or two
