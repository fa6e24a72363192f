"""What student and teacher compute on the way: by which names, what the loss is, and that it is learned."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

import qat
from qat.errors import ConfigError
from qat.functional.distillation import distillation_loss, feature_loss
from qat.training import Classifier
from qat.training.distillation import Distillation
from qat.training.features import FeatureTeacher, watched

SGD = partial(torch.optim.SGD, lr=0.1)
NAMES = ("stem", "stem_norm", "add", "pool")


def student_of(model: nn.Module, images: Tensor) -> qat.PreparedModel:
    prepared = qat.prepare(model, images, "w4a4_lsq")
    qat.calibrate(prepared, [images])
    return prepared


@pytest.mark.parametrize("changed", [False, True])
def test_the_twin_is_the_float_model_whatever_the_student_has_become(
    small_net: nn.Module, images: Tensor, changed: bool
) -> None:
    student = student_of(small_net, images)
    if changed:  # as after AdaRound, or in a run that is resumed
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.mul_(1.5)
    teacher = FeatureTeacher(student.train(), small_net, NAMES)
    logits, features = teacher.taught(images)
    assert torch.equal(logits, small_net(images))
    assert len(features) == len(NAMES)
    assert torch.equal(features[0], small_net.stem(images))
    assert torch.equal(features[1], torch.relu(small_net.stem_norm(small_net.stem(images))))  # its activation is in it
    assert all((f >= 0).all() for f in features[1:])
    assert not any(f.requires_grad for f in features)


def test_the_student_is_watched_behind_its_quantizers(small_net: nn.Module, images: Tensor) -> None:
    student = student_of(small_net, images)
    teacher = FeatureTeacher(student, small_net, ["add"])
    with watched(student, teacher.paths) as seen:
        student(images)
    assert teacher.paths == ("add_quantizer",)
    quantizer = student.get_submodule("add_quantizer")
    assert torch.equal(seen[0], quantizer(seen[0]))
    student(images)
    assert len(seen) == 1


def test_the_loss_of_a_step(small_net: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    distill = Distillation(temperature=3.0, weight=1.0, features=["add", "stem_norm"], feature_weight=0.5)
    module = Classifier(small_net, num_classes=5, optimizer=SGD, distill=distill, teacher=small_net)
    module.model = student_of(small_net, images)
    monkeypatch.setattr(module, "log", lambda *_, **__: None)  # no Trainer here
    qat.freeze_batchnorm(module.model.train())
    qat.observers(module.model, enabled=False)
    batch = (images, torch.zeros(16, dtype=torch.long))
    teacher = module.learn_features()
    logits, theirs = teacher.taught(images)
    with watched(module.model, teacher.paths) as ours:
        student = module.model(images)
    features = torch.stack([feature_loss(s, t) for s, t in zip(ours, theirs, strict=True)]).mean()
    torch.testing.assert_close(module.training_step(batch, 0), distillation_loss(student, logits, 3.0) + 0.5 * features)
    module.eval()  # as it calibrates
    torch.testing.assert_close(module.training_step(batch, 0), distillation_loss(module(images), logits, 3.0))


def test_a_student_learns_them_and_keeps_its_state_to_itself(tiny_net, loader, trainer) -> None:
    teacher = tiny_net().eval()
    student = tiny_net()
    student.dropout.p = 0.0
    names = [name for name, m in student.named_modules() if isinstance(m, nn.BatchNorm2d)][:1]
    distill = Distillation(weight=1.0, temperature=1.0, features=names)
    adam = partial(torch.optim.Adam, lr=0.02)
    module = Classifier(student, num_classes=4, optimizer=adam, distill=distill, teacher=teacher)
    callback = qat.QuantizationAwareTraining(recipe="w8a8")
    images = torch.cat([x for x, _ in loader])
    callback.prepare(module, images[:2])
    callback.calibrate(module, loader)

    def distance() -> float:
        features = module.learn_features()
        with torch.no_grad(), watched(module.model.eval(), features.paths) as seen:
            module.model(images)
        return float(features.loss(seen, features.taught(images)[1]))

    before = distance()
    keys = set(module.state_dict())
    module.train()
    trainer(callback, max_epochs=30).fit(module, loader, loader)
    assert distance() < before / 2
    assert set(module.state_dict()) == keys


def test_unknown_names_fail_together(small_net: nn.Module, images: Tensor) -> None:
    with pytest.raises(ConfigError, match=r"name in distill.features 'stem_nrom'. Did you mean stem_norm.*'poool'"):
        FeatureTeacher(student_of(small_net, images), small_net, ["stem_nrom", "add", "poool"])


@pytest.mark.parametrize("placement", ["graph", "modules"])
def test_a_network_without_a_graph(small_net: nn.Module, images: Tensor, placement: str) -> None:
    student = small_net if placement == "graph" else qat.prepare(small_net, images, placement="modules")
    with pytest.raises(ConfigError, match=r"distill.features needs a network that is prepared along its graph, got"):
        FeatureTeacher(student, small_net, ["stem"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"features": "stem"}, r"need distill.features=\[NAME, ...\], names of the plan, got 'stem'"),
        ({"features": ["stem"], "feature_weight": 0.0}, r"need distill.feature_weight > 0, got 0.0"),
    ],
)
def test_what_is_refused(values, message) -> None:
    with pytest.raises(ConfigError, match=message):
        Distillation(**values)


def test_no_features_to_learn(small_net: nn.Module) -> None:
    module = Classifier(small_net, num_classes=5, optimizer=SGD)
    with pytest.raises(ConfigError, match=r"there are no features to learn; give distill.features"):
        module.learn_features()
