from __future__ import annotations

from pathlib import Path

import hydra.utils
import pytest
import torch
from omegaconf import OmegaConf

from qat.errors import ConfigError
from qat.models import build, names, torchvision

CONF = Path(__file__).parents[2] / "conf" / "model"
DOORS = {"torchvision", "timm", "custom"}  # by model.name or model._target_, not models of their own
OWN = ("patch_transformer", "resnet20", "resnet32", "resnet44", "resnet56", "row_lstm")


def shapes(model):
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def test_names_are_sorted_and_all_there():
    assert list(names()) == sorted({*OWN, *torchvision.NAMES})
    assert len(torchvision.NAMES) >= 80


# published for 1,000 classes; the head's share is taken off and added again for 10
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("mobilenet_v2", 3_504_872 - 1281 * 1000 + 1281 * 10),
        ("resnet18", 11_689_512 - 513 * 1000 + 513 * 10),
        ("resnet20", 269_722),
    ],
)
def test_build(name, parameters):
    model = build(name, 10)
    assert model.training
    assert sum(p.numel() for p in model.parameters()) == parameters
    with torch.no_grad():
        assert model.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("name", sorted({path.stem for path in CONF.glob("*.yaml")} - DOORS))
def test_config_entry_builds_the_same_model(name):
    cfg = OmegaConf.load(CONF / f"{name}.yaml")
    assert cfg.num_classes is None
    model = hydra.utils.instantiate(cfg, num_classes=7)
    assert type(model) is type(build(name, 7))
    assert shapes(model) == shapes(build(name, 7))


def test_every_config_entry_is_in_the_zoo():
    assert {path.stem for path in CONF.glob("*.yaml")} - DOORS <= set(names())
    assert {path.stem for path in CONF.glob("*.yaml")} >= DOORS


def test_options_reach_the_builder():
    assert shapes(build("mobilenet_v2", 10, width_mult=0.5)) != shapes(build("mobilenet_v2", 10))


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"unknown model 'resnet21'. Did you mean .*resnet20 .*Known: alexnet, "):
        build("resnet21", 10)


@pytest.mark.parametrize("name", ["resnet20", "resnet18"])
def test_unknown_option(name):
    with pytest.raises(ConfigError, match=rf"model '{name}' does not take these options: widht=2 "):
        build(name, 10, widht=2)


@pytest.mark.parametrize("name", ["resnet20", "resnet18"])
def test_no_class(name):
    with pytest.raises(ConfigError, match=r"need num_classes >= 1, got 0"):
        build(name, 0)
