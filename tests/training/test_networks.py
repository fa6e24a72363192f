from __future__ import annotations

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torchmetrics.classification import MulticlassAccuracy

import qat
from qat.errors import ConfigError
from qat.training.networks import find_networks, replace_network


def holder(**children: nn.Module) -> pl.LightningModule:
    module = pl.LightningModule()
    for name, child in children.items():
        setattr(module, name, child)
    return module


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU())


@pytest.mark.parametrize("name", ["model", "net", "encoder", "whatever_it_is"])
def test_the_only_child_with_parameters_is_found(name: str) -> None:
    module = holder(**{name: net()}, loss=nn.CrossEntropyLoss(), accuracy=MulticlassAccuracy(4), dropout=nn.Dropout())
    assert list(find_networks(module)) == [name]


def test_of_several_the_usual_name_is_taken() -> None:
    assert list(find_networks(holder(model=net(), teacher=net()))) == ["model"]


def test_names_are_taken_at_their_word() -> None:
    module = holder(parts=nn.ModuleDict({"a": net(), "b": net()}))
    assert find_networks(module, ["parts.a"]) == {"parts.a": module.parts["a"]}


@pytest.mark.parametrize(
    ("children", "names", "message"),
    [
        ({}, None, "LightningModule has no child with parameters to quantize. Assign the network to an attribute"),
        ({"loss": nn.CrossEntropyLoss()}, None, "has no child with parameters"),
        (
            {"backbone": net(), "head": net()},
            None,
            r"several networks: 'backbone', 'head'. Name what to quantize: modules=\['backbone', 'head'\]",
        ),
        (
            {"conv": nn.Conv2d(3, 2, 1), "fc": nn.Linear(2, 2)},
            None,
            "'conv', 'fc' lie directly on LightningModule, which has no forw",
        ),
        ({"encoder": net()}, ["encodr"], "unknown module of LightningModule 'encodr'. Did you mean encoder"),
    ],
)
def test_no_network_says_how_to_name_it(children: dict[str, Any], names: list[str] | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_networks(holder(**children), names)


@pytest.mark.parametrize("names", [None, ["model"]])
@pytest.mark.parametrize("placement", ["graph", "modules"])
def test_a_converted_network_has_nothing_to_train(names: list[str] | None, placement: str) -> None:
    x = torch.randn(2, 3, 4, 4)
    prepared = qat.prepare(net(), x, placement=placement)
    qat.calibrate(prepared, [x])
    with pytest.raises(ConfigError, match=r"'model' is an integer model from qat\.convert, which has nothing to train"):
        find_networks(holder(model=qat.convert(prepared)), names)


def test_replace_below_a_container() -> None:
    module, new = holder(parts=nn.ModuleDict({"a": net(), "b": net()})), net()
    replace_network(module, "parts.b", new)
    assert module.parts["b"] is new
