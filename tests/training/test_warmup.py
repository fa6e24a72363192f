"""The rate of every step, with a warm-up before the schedule, against the closed form."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR, OneCycleLR, PolynomialLR
from torch.utils.data import DataLoader

from qat.errors import ConfigError
from qat.training import Classifier, QuantizationAwareTraining
from qat.training.warmup import warm_steps

Trainers = Callable[..., pl.Trainer]
Loader = DataLoader[Any]
FOLLOWING: dict[Any, Callable[[float], float]] = {
    CosineAnnealingLR: lambda p: (1 + math.cos(math.pi * p)) / 2,
    partial(CosineAnnealingLR, eta_min=0.0): lambda p: (1 + math.cos(math.pi * p)) / 2,
    PolynomialLR: lambda p: 1 - p,
    None: lambda p: 1.0,
}


class Rates(pl.Callback):
    def __init__(self) -> None:
        self.seen: list[list[float]] = []

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.seen.append([group["lr"] for group in trainer.optimizers[0].param_groups])


def classifier(tiny_net: Any, scheduler: Any, **more: Any) -> Classifier:
    torch.manual_seed(0)
    return Classifier(
        tiny_net(), num_classes=4, optimizer=partial(SGD, lr=0.1, momentum=0.9), scheduler=scheduler, **more
    )


@pytest.mark.parametrize(("share", "warm"), [(0.25, 3), (0.01, 1), (0.3, 4)])
@pytest.mark.parametrize("following", FOLLOWING, ids=str)
def test_the_rate_of_every_step(
    trainer: Trainers, tiny_net: Any, loader: Loader, following: Any, share: float, warm: int
) -> None:
    rates, steps = Rates(), 12
    trainer(rates, max_epochs=3).fit(classifier(tiny_net, following, warmup=share), loader, loader)
    expected = [
        (k + 1) / (warm + 1) if k < warm else FOLLOWING[following]((k - warm) / (steps - warm)) for k in range(steps)
    ]
    assert [r[0] for r in rates.seen] == pytest.approx([0.1 * e for e in expected])


def test_each_group_keeps_its_own_rate(trainer: Trainers, tiny_net: Any, loader: Loader) -> None:
    rates, module = Rates(), classifier(tiny_net, CosineAnnealingLR, warmup=0.5, scale_lr=0.01)
    callback = QuantizationAwareTraining(recipe="w4a4_lsq")
    trainer(callback, rates, max_epochs=2).fit(module, loader, loader)
    for weights, norms, scales in rates.seen:
        assert weights == norms
        assert scales == pytest.approx(weights / 10)


def test_a_resumed_run_has_the_rates_of_an_uninterrupted_one(
    trainer: Trainers, tiny_net: Any, loader: Loader, tmp_path: Any
) -> None:
    whole, second = Rates(), Rates()

    class Save(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.current_epoch == 0:
                trainer.save_checkpoint(tmp_path / "first.ckpt")

    trainer(whole, Save(), max_epochs=3).fit(classifier(tiny_net, CosineAnnealingLR, warmup=0.5), loader, loader)
    resumed = classifier(tiny_net, CosineAnnealingLR, warmup=0.5)
    trainer(second, max_epochs=3).fit(resumed, loader, loader, ckpt_path=tmp_path / "first.ckpt")
    assert second.seen == whole.seen[4:]


@pytest.mark.parametrize(
    ("share", "steps", "warm"), [(0.05, 100, 5), (0.05, 101, 6), (0.05, 3, 1), (0.99, 4, 3), (0.5, 1, 1)]
)
def test_at_least_one_step_is_warm_and_one_is_not(share: float, steps: int, warm: int) -> None:
    assert warm_steps(share, steps) == warm


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (
            partial(MultiStepLR, milestones=[1]),
            r"warmup=0.1 is a share of the steps, and MultiStepLR moves once",
        ),
        (partial(OneCycleLR, max_lr=0.1), r"OneCycleLR has a warm-up of its own, pct_start"),
    ],
)
def test_schedules_that_it_does_not_go_with(
    trainer: Trainers, tiny_net: Any, loader: Loader, scheduler: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        trainer().fit(classifier(tiny_net, scheduler, warmup=0.1), loader, loader)


def test_no_end(trainer: Trainers, tiny_net: Any, loader: Loader) -> None:
    with pytest.raises(ConfigError, match=r"the schedule needs the number of steps, and the run has inf"):
        trainer(max_epochs=-1).fit(classifier(tiny_net, None, warmup=0.1), loader, loader)


@pytest.mark.parametrize("value", [-0.1, 1.0, math.nan])
def test_a_share(tiny_net: Any, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"need 0 <= warmup < 1, a share of the steps, got {value}"):
        classifier(tiny_net, None, warmup=value)
