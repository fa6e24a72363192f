"""What the pipeline decides before anything is built: where the model starts, what the data take from its weights."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from qat.errors import ConfigError
from qat.pipeline.source import read_source, with_preprocessing

CONF = Path(__file__).parent.parent.parent / "conf"
WEIGHTS = "model.weights=IMAGENET1K_V1"


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=["run_dir=/nowhere", "data=image_folder", "data.root=/nowhere", *overrides])


def data_of(*overrides: str) -> DictConfig:
    cfg = composed(*overrides)
    return with_preprocessing(cfg, read_source(cfg)).data


@pytest.mark.parametrize("model", [["model=resnet18"], ["model=torchvision", "model.name=resnet18"]])
def test_published_weights_bring_their_preprocessing(model: list[str]) -> None:
    data = data_of(*model, WEIGHTS)
    assert (data.image_size, data.resize_size, data.interpolation) == (224, 256, "bilinear")
    assert (data.mean, data.std) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def test_of_timm_too() -> None:
    pytest.importorskip("timm")  # an extra
    data = data_of("model=timm", "model.name=resnet18", "model.weights=a1_in1k")
    assert (data.image_size, data.resize_size, data.interpolation) == (288, 288, "bicubic")


def test_a_size_of_ones_own_keeps_the_proportion(caplog: pytest.LogCaptureFixture) -> None:
    data = data_of("model=resnet18", WEIGHTS, "data.image_size=112", "data.mean=[0, 0, 0]")
    assert (data.image_size, data.resize_size, data.mean) == (112, 128, [0, 0, 0])
    assert "data.mean is [0, 0, 0], and the weights IMAGENET1K_V1 were evaluated with [0.485" in caplog.text


def test_data_without_a_size_take_the_values() -> None:
    cfg = composed("data=cifar10", "~data.root", "model=resnet18", WEIGHTS)
    assert with_preprocessing(cfg, read_source(cfg)).data.std == [0.229, 0.224, 0.225]


def test_without_weights_nothing_changes() -> None:
    cfg = composed("model=resnet18")
    assert with_preprocessing(cfg, read_source(cfg)) == cfg


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([WEIGHTS, "init_from=a.pt"], r"init_from=a\.pt and model\.weights=IMAGENET1K_V1 are two places to start from"),
        (["init_reset_head=true"], r"init_reset_head=true needs weights to start from: model\.weights=NAME or init_f"),
        (
            [WEIGHTS, "float.freeze_backbone=true"],
            r"float\.freeze_backbone=true .* needs init_reset_head=true, and ",
        ),
        (["model=torchvision"], r"model\.name has no value; give one on the command line: model\.name=VALUE"),
        (["model=custom"], r"model\._target_ has no value; give one on the command line: model\._target_=VALUE"),
        (["model=custom", "model._target_=no.Net"], r"_target_ 'no\.Net' cannot be imported"),
    ],
)
def test_refused_before_anything_is_built(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_source(composed(*(["model=resnet18"] if WEIGHTS in overrides else []), *overrides))
