from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import alexnet, vit_b_32

import qat
from qat.errors import ConfigError, ExportError
from qat.training import require_classifier
from qat.training.trial import require_exportable

WAY_OUT = "Give it a parameter num_classes"
IMAGES = torch.zeros(2, 3, 8, 8)


class Training(nn.Module):
    """What it returns in training mode, and logits otherwise."""

    def __init__(self, returned: Any) -> None:
        super().__init__()
        self.returned = returned

    def forward(self, x: Tensor) -> Any:
        return self.returned if self.training else torch.zeros(len(x), 4)


def test_the_model_and_the_generator_are_left_alone(tiny_net: type[nn.Module]) -> None:
    model = tiny_net()  # with BatchNorm and dropout
    state = {key: value.clone() for key, value in model.state_dict().items()}
    before = torch.get_rng_state()
    require_classifier(model, IMAGES, 4, WAY_OUT)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("model", "size", "reason"),
    [
        (
            vit_b_32,
            96,
            r"VisionTransformer rejects images of 96 x 96 in evaluation mode \(AssertionError: Wrong ",
        ),
        (
            alexnet,
            32,
            r"AlexNet rejects images of 32 x 32 in evaluation mode \(RuntimeError: .*size is too small",
        ),
    ],
)
def test_a_size_that_the_model_rejects(model: Any, size: int, reason: str) -> None:
    with torch.device("meta"):
        images, net = torch.zeros(2, 3, size, size), model(num_classes=4)
    with pytest.raises(ConfigError, match=f"{reason}.*Set data.image_size to what it was made for"):
        require_classifier(net, images, 4, WAY_OUT)


def test_another_number_of_classes(tiny_net: type[nn.Module]) -> None:
    message = r"TinyNet returns \[2, 4\] for 2 images, and the data has 7 classes; need one .* Give it a param"
    with pytest.raises(ConfigError, match=message):
        require_classifier(tiny_net(), IMAGES, 7, WAY_OUT)


def test_what_is_returned_in_training_is_looked_at_too() -> None:
    require_classifier(Training((torch.zeros(2, 4), torch.zeros(2, 4))), IMAGES, 4, WAY_OUT)
    with pytest.raises(ConfigError, match=r"Training returns a str, which the loss cannot use"):
        require_classifier(Training("loss"), IMAGES, 4, WAY_OUT)
    with pytest.raises(ConfigError, match=r"returns \[2, 5\] for 2 images, and the data has 4 classes"):
        require_classifier(Training((torch.zeros(2, 4), torch.zeros(2, 5))), IMAGES, 4, WAY_OUT)


class Branches(nn.Module):
    """Looks at values, so that no graph of it can be written."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(x)
        return y if y.sum() > 0 else -y


def calibrated(model: nn.Module, placement: str) -> qat.PreparedModel:
    x = torch.randn(4, 6)
    prepared = qat.prepare(model, x, placement=placement)
    qat.calibrate(prepared, [x])
    return prepared


def test_a_model_that_cannot_be_exported_is_found_before_training() -> None:
    prepared = calibrated(Branches(), "modules")
    with pytest.raises(
        ExportError, match=r"torch\.export cannot .* Found before training; qat\.try_export=false trains"
    ):
        require_exportable(prepared, prepared.target)


@pytest.mark.runtime
@pytest.mark.parametrize("placement", ["graph", "modules"])
def test_a_trial_changes_nothing(placement: str) -> None:
    prepared = calibrated(nn.Sequential(nn.Linear(6, 3)), placement).train()
    before = {name: value.clone() for name, value in prepared.state_dict().items()}
    require_exportable(prepared, prepared.target)
    assert prepared.training
    assert all(torch.equal(value, before[name]) for name, value in prepared.state_dict().items())
