"""Mixup in a training step, and nowhere else."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.nn import functional as F
from torch.optim import SGD
from torch.utils.data import DataLoader

import qat
from qat.errors import ConfigError
from qat.functional.distillation import distillation_loss
from qat.functional.mixup import draw_share, mixed
from qat.training import Classifier, Distillation, QuantizationAwareTraining, SeedEveryEpoch

Trainers = Callable[..., pl.Trainer]
Loader = DataLoader[Any]


def classifier(tiny_net: Any, seed: int = 0, **more: Any) -> Classifier:
    torch.manual_seed(seed)
    net = tiny_net()
    net.dropout.p = 0.0
    return Classifier(net, num_classes=4, optimizer=partial(SGD, lr=0.1), **more)


@pytest.mark.parametrize("taught", [False, True])
def test_the_loss_is_that_of_the_blend_the_teacher_sees_it_too(
    tiny_net: Any, loader: Loader, monkeypatch: pytest.MonkeyPatch, taught: bool
) -> None:
    aids: dict[str, Any] = {"distill": Distillation(weight=0.5), "teacher": tiny_net()} if taught else {}
    module = classifier(tiny_net, mixup=0.4, label_smoothing=0.1, **aids)
    monkeypatch.setattr(module, "log", lambda *_, **__: None)  # no Trainer here
    images, labels = batch = next(iter(loader))
    torch.manual_seed(5)
    x, y = mixed(images, labels, draw_share(0.4), 4)
    logits = module.model.train()(x)
    log_p = F.log_softmax(logits, 1)
    expected = -((0.9 * y + 0.1 / 4) * log_p).sum(1).mean()
    if taught:
        expected = 0.5 * expected + 0.5 * distillation_loss(logits, aids["teacher"](x), 2.0)
    torch.manual_seed(5)
    torch.testing.assert_close(module.train().training_step(batch, 0), expected)


def test_calibration_sees_images_as_they_are(tiny_net: Any, loader: Loader) -> None:
    ranges = []
    for mixup in (0.0, 0.4):
        module, callback = classifier(tiny_net, mixup=mixup), QuantizationAwareTraining()
        callback.prepare(module, next(iter(loader))[0])
        callback.calibrate(module, loader)
        ranges.append([q.scale.clone() for q in qat.quantizers(module.model).values()])  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(*ranges, strict=True))


def test_resumed_equals_uninterrupted(trainer: Trainers, tiny_net: Any, loader: Loader, tmp_path: Path) -> None:
    def run(epochs: int, ckpt: Path | None = None) -> tuple[Any, dict[str, torch.Tensor]]:
        module = classifier(tiny_net, seed=0 if ckpt is None else 9, mixup=0.4)
        callback = QuantizationAwareTraining(freeze_observers_at=1, freeze_bn_at=1)
        fitted = trainer(callback, SeedEveryEpoch(0), max_epochs=epochs)
        fitted.fit(module, loader, loader, ckpt_path=ckpt)
        return fitted, module.state_dict()

    half, _ = run(1)
    half.save_checkpoint(tmp_path / "half.ckpt")
    _, whole = run(2)
    _, resumed = run(2, tmp_path / "half.ckpt")
    assert [k for k in whole if not torch.equal(whole[k], resumed[k])] == []


@pytest.mark.parametrize("value", [-0.1, math.inf, math.nan])
def test_an_alpha_is_not_negative(tiny_net: Any, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"need mixup >= 0, got {value}; 0.2 is usual, 0 is none"):
        classifier(tiny_net, mixup=value)
