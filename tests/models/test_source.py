from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
from torch import nn

from qat.errors import ConfigError
from qat.models import ModelSource

BUILD = "qat.models.torchvision.build"


class MyNet(nn.Module):
    def __init__(self, num_classes: int, width: int = 3) -> None:
        super().__init__()


class Fixed(nn.Module):
    def __init__(self, width: int = 3) -> None:
        super().__init__()


def anything(**options: Any) -> nn.Module:
    return nn.Identity()


@pytest.fixture(autouse=True)
def _my_package(monkeypatch: pytest.MonkeyPatch) -> None:
    package = ModuleType("my_package")
    package.MyNet, package.Fixed, package.anything = MyNet, Fixed, anything  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_package", package)


@pytest.mark.parametrize(
    ("section", "built"),
    [
        (
            {"_target_": "torchvision.models.resnet18", "num_classes": None, "weights": None},
            {"_target_": BUILD, "name": "resnet18", "num_classes": 7, "weights": None},
        ),
        (
            {"_target_": "torchvision.models.resnet.resnet18", "num_classes": 7, "weights": "DEFAULT"},
            {"_target_": BUILD, "name": "resnet18", "num_classes": 7, "weights": "DEFAULT", "reset_head": True},
        ),
        (
            {"_target_": "my_package.MyNet", "num_classes": None, "weights": None, "width": 4},
            {"_target_": "my_package.MyNet", "num_classes": 7, "width": 4},
        ),
        ({"_target_": "my_package.Fixed", "num_classes": None}, {"_target_": "my_package.Fixed"}),
        (
            {"_target_": "my_package.anything", "weights": "mine"},
            {"_target_": "my_package.anything", "num_classes": 7, "weights": "mine"},
        ),
    ],
)
def test_section_to_build_from(section: dict[str, Any], built: dict[str, Any]) -> None:
    assert ModelSource.parse(section).section(7, reset_head=True) == built


def test_fresh_leaves_the_weights_out() -> None:
    source = ModelSource.parse({"_target_": BUILD, "name": "resnet18", "weights": "IMAGENET1K_V1"})
    assert source.section(7, fresh=True) == {"_target_": BUILD, "name": "resnet18", "num_classes": 7}


def test_preprocessing_is_known_without_a_download() -> None:
    source = ModelSource.parse({"_target_": "torchvision.models.efficientnet_b1", "weights": "IMAGENET1K_V2"})
    found = source.preprocessing()
    assert found is not None
    assert (found.image_size, found.resize_size, found.interpolation) == (240, 255, "bilinear")
    assert found.at(120).resize_size == 128  # 127.5, to even
    assert found.options()["mean"] == [0.485, 0.456, 0.406]


def test_without_weights_there_is_no_preprocessing() -> None:
    assert ModelSource.parse({"_target_": "torchvision.models.resnet18"}).preprocessing() is None
    assert ModelSource.parse({"_target_": "my_package.anything", "weights": "mine"}).preprocessing() is None


def test_classes_for_a_class_that_takes_none() -> None:
    message = r"model\.num_classes=7, but my_package\.Fixed takes no num_classes; give it this parameter, or leave"
    with pytest.raises(ConfigError, match=message):
        ModelSource.parse({"_target_": "my_package.Fixed", "num_classes": 7})


def test_unknown_weights_are_refused_before_anything_is_built() -> None:
    source = ModelSource.parse({"_target_": "torchvision.models.resnet18", "weights": "IMAGENET1K_V9"})
    with pytest.raises(ConfigError, match=r"unknown weights of resnet18 'IMAGENET1K_V9'.*Known: DEFAULT, I"):
        source.preprocessing()
