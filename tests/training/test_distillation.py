"""A teacher in the loss: its share, its place outside of the module, and what is refused."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import qat
from qat.errors import ConfigError
from qat.functional.distillation import distillation_loss
from qat.training import Classifier
from qat.training.distillation import Distillation
from qat.training.networks import find_networks

SGD = partial(torch.optim.SGD, lr=0.1)


@pytest.mark.parametrize("values", [{"temperature": 0.0}, {"temperature": float("nan")}])
def test_a_temperature_is_positive(values):
    with pytest.raises(ConfigError, match=r"need distill.temperature > 0, got"):
        Distillation(**values)


@pytest.mark.parametrize("weight", [0.0, 1.5])
def test_a_share_lies_in_0_to_1(weight):
    with pytest.raises(ConfigError, match=rf"need 0 < distill.weight <= 1, got {weight}"):
        Distillation(weight=weight)


def test_a_teacher_must_be_there(tiny_net):
    with pytest.raises(ConfigError, match=r"distillation needs a float teacher"):
        Classifier(tiny_net(), num_classes=4, optimizer=SGD, distill=Distillation())


def test_a_quantized_teacher_is_refused(tiny_net):
    prepared = qat.prepare(tiny_net().eval(), torch.randn(2, 3, 8, 8))
    with pytest.raises(ConfigError, match=r"the teacher is quantized already"):
        Classifier(tiny_net(), num_classes=4, optimizer=SGD, distill=Distillation(), teacher=prepared)


@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_the_loss_of_a_step_is_the_weighted_sum(tiny_net, loader, weight, monkeypatch):
    student, teacher = tiny_net().eval(), tiny_net()
    module = Classifier(
        student, num_classes=4, optimizer=SGD, distill=Distillation(temperature=3.0, weight=weight), teacher=teacher
    )
    monkeypatch.setattr(module, "log", lambda *_, **__: None)  # no Trainer here
    images, labels = batch = next(iter(loader))
    expected = (1 - weight) * F.cross_entropy(student(images), labels)
    expected = expected + weight * distillation_loss(student(images), teacher(images), 3.0)
    torch.testing.assert_close(module.training_step(batch, 0), expected)


def test_the_teacher_stays_and_is_no_part_of_the_module(tiny_net, loader, trainer):
    teacher = tiny_net()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    module = Classifier(tiny_net(), num_classes=4, optimizer=SGD, distill=Distillation(), teacher=teacher)
    assert not any("teacher" in name for name in module.state_dict())
    assert list(find_networks(module)) == ["model"]
    start = module.model.fc.weight.clone()
    trainer().fit(module, loader, loader)
    assert not torch.equal(module.model.fc.weight, start)
    assert not teacher.training
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_student_that_is_quantized_learns_its_teacher(tiny_net, loader, trainer):
    teacher: nn.Module = tiny_net().eval()
    images = torch.cat([x for x, _ in loader])
    student = tiny_net()
    student.dropout.p = 0.0
    module = Classifier(student, num_classes=4, optimizer=SGD, distill=Distillation(weight=1.0), teacher=teacher)
    callback = qat.training.QuantizationAwareTraining(recipe="w4a4_lsq")
    callback.prepare(module, images[:2])
    callback.calibrate(module, loader)

    def distance() -> float:
        with torch.no_grad():
            return float(distillation_loss(module.eval()(images), teacher(images), 2.0))

    before = distance()
    module.train()
    trainer(callback, max_epochs=5).fit(module, loader, loader)
    assert distance() < before / 2


def test_ranges_that_are_trained_move_though_observers_are_frozen(tiny_net, loader, trainer, caplog):
    module = Classifier(tiny_net(), num_classes=4, optimizer=SGD)
    callback = qat.training.QuantizationAwareTraining(recipe="w4a4_lsq", freeze_observers_at=0)
    callback.prepare(module, next(iter(loader))[0])
    callback.calibrate(module, loader)
    steps = {name: p.detach().clone() for name, p in module.named_parameters() if name.endswith(".step")}
    with caplog.at_level("INFO", "qat"):
        trainer(callback).fit(module, loader, loader)
    assert "epoch 0, batch 0: ranges frozen; trained ranges go on" in caplog.text
    assert all(not torch.equal(p, steps[name]) for name, p in module.named_parameters() if name in steps)


def test_a_checkpoint_holds_no_teacher_and_resumes(tiny_net, loader, trainer, tmp_path):
    torch.manual_seed(0)
    teacher = tiny_net()

    def module() -> Classifier:
        torch.manual_seed(1)
        return Classifier(tiny_net(), num_classes=4, optimizer=SGD, distill=Distillation(), teacher=teacher)

    whole, first, second = module(), module(), module()
    for each in (whole, first, second):
        each.model.dropout.p = 0.0
    trainer(max_epochs=2).fit(whole, loader, loader)
    half = trainer(max_epochs=1)
    half.fit(first, loader, loader)
    half.save_checkpoint(tmp_path / "half.ckpt")
    assert not any("teacher" in key for key in torch.load(tmp_path / "half.ckpt", weights_only=True)["state_dict"])
    trainer(max_epochs=2).fit(second, loader, loader, ckpt_path=tmp_path / "half.ckpt")
    for name, tensor in second.state_dict().items():
        assert torch.equal(tensor, whole.state_dict()[name]), name
