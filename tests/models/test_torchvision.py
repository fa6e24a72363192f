"""torchvision's classifiers and their published weights. Downloads come from files here; nothing leaves the machine."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torchvision as tv
from PIL import Image
from torch import nn
from torchvision.models import WeightsEnum, get_model_builder, get_model_weights

from qat.data.evaluation import Interpolation, resize_and_crop
from qat.data.normalization import Normalization
from qat.errors import CheckpointError, ConfigError
from qat.models import head_of
from qat.models.torchvision import NAMES, build, find_weights, preprocessing

# one of each way to prepare images
PUBLISHED = {
    str(entry.transforms()): (name, entry.name) for name in NAMES for entry in get_model_weights(name)
}.values()
QUICK = {"alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3", "maxvit_t",
         "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_y_400mf", "resnet18", "resnext50_32x4d",
         "shufflenet_v2_x0_5", "squeezenet1_0", "swin_t", "swin_v2_t", "vgg11", "vit_b_32"}  # fmt: skip
LARGE_REGNET = re.compile(r"regnet_\w_\d+(gf|_\dgf)")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder of downloads, and a proxy that refuses: no host can be reached."""
    before = torch.hub.get_dir()
    torch.hub.set_dir(tmp_path / "hub")
    for scheme in ("http", "https"):
        monkeypatch.setenv(f"{scheme}_proxy", "http://127.0.0.1:9")  # the port for throwing things away
    yield tmp_path / "hub" / "checkpoints"
    torch.hub.set_dir(before)


@pytest.fixture
def publish(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, torch.Tensor]]:
    """`publish(model)`: whatever weights are asked for, those of `model` are what the host has."""

    def at(model: nn.Module, *, digest: str | None = None) -> dict[str, torch.Tensor]:
        file = tmp_path / "weights"
        torch.save(model.state_dict(), file)
        digest = digest or hashlib.sha256(file.read_bytes()).hexdigest()[:8]
        named = file.rename(tmp_path / f"net-{digest}.pth")
        monkeypatch.setattr(WeightsEnum, "url", property(lambda _: named.as_uri()))
        return model.state_dict()

    return at


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in NAMES if not LARGE_REGNET.fullmatch(n)],
)
def test_every_classifier_for_any_number_of_classes(name: str) -> None:
    """On the meta device, where RegNets alone cannot be built: they read values in their constructor."""
    shapes: list[dict[str, tuple[int, ...]]] = []

    def make(num_classes: int) -> nn.Module:
        model = build(name, num_classes)
        assert model.training
        shapes.append({key: tuple(value.shape) for key, value in model.state_dict().items()})
        return model

    head = head_of(make, 7)
    assert {shapes[0][key][0] for key in head} == {7}
    assert {shapes[1][key][0] for key in head} == {8}
    assert len(head) <= 6


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("resnet18", ("fc.weight", "fc.bias")),
        ("mobilenet_v3_large", ("classifier.3.weight", "classifier.3.bias")),
        ("squeezenet1_1", ("classifier.1.weight", "classifier.1.bias")),
        ("inception_v3", ("AuxLogits.fc.weight", "AuxLogits.fc.bias", "fc.weight", "fc.bias")),
    ],
)
def test_heads(name: str, head: tuple[str, ...]) -> None:
    assert head_of(lambda n: build(name, n), 10) == head


@pytest.mark.parametrize(("name", "auxiliary"), [("googlenet", 2), ("inception_v3", 1)])
def test_auxiliary_heads_are_there_for_training(name: str, auxiliary: int) -> None:
    with torch.device("meta"):
        outputs = build(name, 7)(torch.zeros(2, 3, 299, 299))
    assert [tuple(logits.shape) for logits in outputs] == [(2, 7)] * (1 + auxiliary)


@pytest.mark.parametrize(("name", "weights"), PUBLISHED)
def test_preprocessing_is_that_of_the_weights(name: str, weights: str) -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (40, 50, 3), generator=generator, dtype=torch.uint8)
    image = Image.fromarray(pixels.numpy()).resize((600, 500))
    found = preprocessing(name, weights)
    assert found is not None
    transform = resize_and_crop(found.image_size, found.resize_size, Interpolation(found.interpolation))
    ours = Normalization.of(found.mean, found.std)(transform(image)[None])
    theirs = get_model_weights(name)[weights].transforms()(image)
    # one multiplication where torchvision divides twice; in units of a pixel's 1 / 255 that is nothing
    torch.testing.assert_close(ours[0], theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("googlenet", "IMAGENET1K_V1"),
        ("inception_v3", "IMAGENET1K_V1"),
        ("vit_b_16", "IMAGENET1K_SWAG_E2E_V1"),
        ("maxvit_t", "IMAGENET1K_V1"),
    ],
)
def test_weights_bring_the_options_that_torchvision_gives_them(
    monkeypatch: pytest.MonkeyPatch, name: str, weights: str
) -> None:
    """The model that torchvision itself builds for these weights, before it loads them."""

    class BuiltError(Exception):
        pass

    def stop(model: nn.Module, *_: object, **__: object) -> None:
        found.append(model)
        raise BuiltError

    found: list[nn.Module] = []
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *_, **__: {})
    monkeypatch.setattr(nn.Module, "load_state_dict", stop)
    with torch.device("meta"), pytest.raises(BuiltError):
        get_model_builder(name)(weights=weights)
    monkeypatch.setattr("qat.models.torchvision.fetch", lambda _: "")
    monkeypatch.setattr("qat.models.torchvision.read_state", lambda _: None)
    monkeypatch.setattr("qat.models.torchvision.load_state", lambda model, *_, **__: found.append(model))
    with torch.device("meta"):
        build(name, weights=weights)
    theirs, ours = found
    assert {k: v.shape for k, v in theirs.state_dict().items()} == {k: v.shape for k, v in ours.state_dict().items()}
    assert getattr(theirs, "transform_input", None) == getattr(ours, "transform_input", None)


def test_published_weights_are_downloaded_once_and_loaded(
    publish: Callable[..., dict[str, torch.Tensor]], hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = publish(tv.models.shufflenet_v2_x0_5())
    model = build("shufflenet_v2_x0_5", weights="IMAGENET1K_V1")
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    (file,) = hub.iterdir()
    monkeypatch.setattr(WeightsEnum, "url", property(lambda _: f"https://nowhere.invalid/{file.name}"))
    again = build("shufflenet_v2_x0_5", weights="ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1")
    assert torch.equal(again.fc.weight, model.fc.weight)


def test_another_number_of_classes_needs_a_new_head(publish: Callable[..., dict[str, torch.Tensor]], hub: Path) -> None:
    state = publish(tv.models.shufflenet_v2_x0_5())
    message = (
        r"weights IMAGENET1K_V1 of shufflenet_v2_x0_5 have 1000 classes, the model is to have 2; use "
        r"init_reset_head=true .*or num_classes=1000"
    )
    with pytest.raises(CheckpointError, match=message):
        build("shufflenet_v2_x0_5", 2, weights="DEFAULT")
    assert not hub.exists()  # refused before the download
    model = build("shufflenet_v2_x0_5", 2, weights=True, reset_head=True)
    rest = {key: value for key, value in model.state_dict().items() if not key.startswith("fc.")}
    assert all(torch.equal(value, state[key]) for key, value in rest.items())
    assert model.fc.weight.shape == (2, 1024)


def test_a_head_can_be_reset_for_as_many_classes(publish: Callable[..., dict[str, torch.Tensor]]) -> None:
    state = publish(tv.models.shufflenet_v2_x0_5())
    model = build("shufflenet_v2_x0_5", weights=True, reset_head=True)
    assert not torch.equal(model.fc.weight, state["fc.weight"])
    assert torch.equal(model.conv5[0].weight, state["conv5.0.weight"])


def test_an_unreachable_host_leaves_nothing(hub: Path) -> None:
    message = (
        r"cannot fetch ResNet18_Weights\.IMAGENET1K_V1 \(URLError: .*refused.*\)\. Where this machine has no "
        r"way there: download https://download\.pytorch\.org/models/resnet18-f37072fd\.pth elsewhere, put it to \S+"
        r"checkpoints/resnet18-f37072fd\.pth and run again, or name it with init_from=FILE"
    )
    with pytest.raises(CheckpointError, match=message):
        build("resnet18", weights="IMAGENET1K_V1")
    assert list(hub.iterdir()) == []


def test_a_download_that_was_cut_leaves_nothing(publish: Callable[..., dict[str, torch.Tensor]], hub: Path) -> None:
    publish(tv.models.shufflenet_v2_x0_5(), digest="0" * 8)
    with pytest.raises(CheckpointError, match=r"cannot fetch ShuffleNet.*\(RuntimeError: invalid hash value"):
        build("shufflenet_v2_x0_5", weights=True)
    assert list(hub.iterdir()) == []


def test_unknown_weights_are_listed() -> None:
    message = r"unknown weights of resnet50 'IMAGENET1K_V3'\. Did you mean .*Known: DEFAULT, IMAGENET1K_V1, I"
    with pytest.raises(ConfigError, match=message):
        find_weights("resnet50", "IMAGENET1K_V3")


def test_unknown_name_lists_the_nearest_first() -> None:
    with pytest.raises(ConfigError, match=r"unknown model of torchvision 'resnet51'\. Did you mean .*resnet50.*Known"):
        build("resnet51")
