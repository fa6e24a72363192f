"""timm's models; without a network, so its weights come from a file or not at all."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

pytest.importorskip("timm")  # an extra

import timm
from timm.data import create_transform, resolve_data_config
from timm.models import get_pretrained_cfg

from qat.data.evaluation import Interpolation, resize_and_crop
from qat.data.normalization import Normalization
from qat.errors import CheckpointError, ConfigError
from qat.models import head_of
from qat.models.timm import build, find_weights, preprocessing


def test_build_with_options() -> None:
    model = build("resnet10t", 7, drop_path_rate=0.1)
    assert model.training
    assert model.eval()(torch.zeros(2, 3, 64, 64)).shape == (2, 7)
    assert head_of(lambda n: build("resnet10t", n), 7) == ("fc.weight", "fc.bias")


@pytest.mark.parametrize("full", ["resnet18.a1_in1k", "resnet18.tv_in1k", "mobilenetv3_small_050.lamb_in1k"])
def test_preprocessing_is_that_of_timms_own_validation(full: str) -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (30, 40, 3), generator=generator, dtype=torch.uint8)
    image = Image.fromarray(pixels.numpy()).resize((640, 480))
    name, _, tag = full.partition(".")
    found = preprocessing(name, tag)
    assert found is not None
    transform = resize_and_crop(found.image_size, found.resize_size, Interpolation(found.interpolation))
    ours = Normalization.of(found.mean, found.std)(transform(image)[None])[0]
    config = resolve_data_config(pretrained_cfg=get_pretrained_cfg(full).to_dict(), use_test_size=True)
    torch.testing.assert_close(ours, create_transform(**config)(image), rtol=1e-5, atol=1e-5)


def test_weights_by_tag() -> None:
    assert find_weights("resnet18", None) is None
    assert find_weights("resnet18", "DEFAULT") == find_weights("resnet18", True) == "a1_in1k"
    assert find_weights("resnet18", "resnet18.tv_in1k") == "tv_in1k"


@pytest.mark.parametrize(("num_classes", "reset"), [(1000, False), (3, True)])
def test_published_weights_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_classes: int, reset: bool
) -> None:
    published = timm.create_model("resnet10t")
    torch.save(published.state_dict(), tmp_path / "weights.pth")
    overlay = {"file": str(tmp_path / "weights.pth")}
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: create(*a, **k, pretrained_cfg_overlay=overlay))
    model = build("resnet10t", num_classes, weights="DEFAULT", reset_head=reset)
    state = published.state_dict()
    same = [key for key, value in model.state_dict().items() if torch.equal(value, state[key])]
    assert set(state) - set(same) == ({"fc.weight", "fc.bias"} if reset else set())


def test_an_unreachable_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        CheckpointError,
        match=r"cannot fetch timm's resnet10t\.c3_in1k \(\w+: .*and name it with init_from=FILE",
    ):
        build("resnet10t", weights="c3_in1k")


def test_another_number_of_classes_needs_a_new_head() -> None:
    with pytest.raises(CheckpointError, match=r"weights c3_in1k of resnet10t have 1000 classes.*init_reset_head=true"):
        build("resnet10t", 2, weights="DEFAULT")


def test_weights_without_a_head_need_a_new_one() -> None:
    name = "vit_small_patch16_dinov3"
    with pytest.raises(CheckpointError, match=r"published without a head.*2 classes; use init_reset_head=true"):
        build(name, 2, weights="DEFAULT")


def test_images_that_are_not_square_are_told_of(caplog: pytest.LogCaptureFixture) -> None:
    full = next(
        n for n in sorted(timm.list_models(pretrained=True)) if len(set(get_pretrained_cfg(n).input_size[1:])) > 1
    )
    name, _, tag = full.partition(".")
    height, width = get_pretrained_cfg(full).input_size[1:]
    found = preprocessing(name, tag)
    assert found is not None
    assert found.image_size == width
    assert f"on images of {height} x {width}, and images here are square" in caplog.text


def test_unknown_name_and_weights_list_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown model of timm 'resnet1O'\. Nearest: .*resnet1.*lists all \d{4}"):
        build("resnet1O")
    with pytest.raises(ConfigError, match=r"unknown weights of resnet18 'a9_in1k'\. Did you mean .*a1_in1k.*Known: "):
        build("resnet18", weights="a9_in1k")


def test_unknown_option() -> None:
    with pytest.raises(ConfigError, match=r"model 'resnet10t' does not take these options: widht=2"):
        build("resnet10t", widht=2)


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.delitem(sys.modules, "qat.models.timm")
    with pytest.raises(ConfigError, match=r"uv sync --extra timm.*pip install timm"):
        importlib.import_module("qat.models.timm")
