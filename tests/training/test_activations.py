"""Weights on their grid first, activations later: which batches, what validation sees, and where ranges start."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor
from torch.optim import SGD
from torch.utils.data import DataLoader

import qat
from qat.errors import ConfigError
from qat.training import Classifier, QuantizationAwareTraining, SeedEveryEpoch

Trainers = Callable[..., pl.Trainer]
Loader = DataLoader[Any]


class Switches(pl.Callback):
    """Whether activations, and weights, are quantized in every batch; and the ranges that it finds."""

    def __init__(self) -> None:
        self.trained: list[bool] = []
        self.validated: list[bool] = []
        self.ranges: list[list[Tensor]] = []

    def look(self, module: Any) -> bool:
        found = qat.quantizers(module.model)
        assert all(q.enabled for name, q in found.items() if name.endswith("weight_quantizer"))
        (enabled,) = {q.enabled for name, q in found.items() if not name.endswith("weight_quantizer")}
        return enabled

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        self.trained.append(self.look(module))
        activations = [q for n, q in qat.quantizers(module.model).items() if not n.endswith("weight_quantizer")]
        self.ranges.append([q.scale.detach().clone() for q in activations])

    def on_validation_batch_start(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        self.validated.append(self.look(module))


def classifier(tiny_net: Any, seed: int = 0) -> Classifier:
    torch.manual_seed(seed)
    return Classifier(tiny_net(), num_classes=4, optimizer=partial(SGD, lr=0.1, momentum=0.9, weight_decay=0.01))


@pytest.mark.parametrize("recipe", ["w8a8", "w4a4_lsq"])
def test_which_batches_quantize_activations(trainer: Trainers, tiny_net: Any, loader: Loader, recipe: str) -> None:
    switches, module = Switches(), classifier(tiny_net)
    callback = QuantizationAwareTraining(recipe=recipe, activations_from=0.3)
    trainer(callback, switches, max_epochs=2).fit(module, loader, loader)
    assert switches.trained == [False] * 3 + [True] * 5  # 2/8 < 0.3 <= 3/8
    assert switches.validated
    assert all(switches.validated)  # what is measured is what would be deployed
    assert switches.look(module)
    first, second = switches.ranges[:2]
    assert any(not torch.equal(a, b) for a, b in zip(first, second, strict=True))  # observed meanwhile


def test_a_trained_range_starts_from_what_was_seen_last(trainer: Trainers, tiny_net: Any, loader: Loader) -> None:
    """While activations are in float their step sizes follow the observer, and no gradient moves them."""

    class NoGradient(pl.Callback):
        def on_before_optimizer_step(self, trainer: pl.Trainer, module: Any, optimizer: Any) -> None:
            steps = {n: p for n, p in module.model.named_parameters() if n.endswith(".step")}
            moved.append({n.endswith("weight_quantizer.step") for n, p in steps.items() if p.grad is not None})

    moved: list[set[bool]] = []
    callback = QuantizationAwareTraining(recipe="w4a4_lsq", activations_from=0.5)
    trainer(callback, NoGradient()).fit(classifier(tiny_net), loader, loader)
    assert moved == [{True}, {True}, {True, False}, {True, False}]


def test_switches_of_a_caller_stay_where_the_schedule_has_no_say(
    trainer: Trainers, tiny_net: Any, loader: Loader
) -> None:
    module, callback = classifier(tiny_net), QuantizationAwareTraining()
    callback.prepare(module, next(iter(loader))[0])
    callback.calibrate(module, loader)
    qat.fake_quant(module.model, enabled=False)
    trainer(callback).fit(module, loader, loader)
    assert not any(q.enabled for q in qat.quantizers(module.model).values())  # type: ignore[arg-type]


def test_a_fit_that_ends_early_leaves_activations_quantized(trainer: Trainers, tiny_net: Any, loader: Loader) -> None:
    class Crash(pl.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            raise ArithmeticError

    switches, module = Switches(), classifier(tiny_net)
    with pytest.raises(ArithmeticError):
        trainer(QuantizationAwareTraining(activations_from=0.5), switches, Crash()).fit(module, loader, loader)
    assert switches.trained == [False]
    assert switches.look(module)


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning")  # it goes on there
@pytest.mark.parametrize("recipe", ["w8a8", "w4a4_lsq"])
def test_resumed_equals_uninterrupted(
    trainer: Trainers, tiny_net: Any, loader: Loader, tmp_path: Path, recipe: str
) -> None:
    def run(ckpt: Path | None = None, seed: int = 0) -> dict[str, Tensor]:
        module = classifier(tiny_net, seed)
        callback = QuantizationAwareTraining(recipe=recipe, activations_from=0.4)
        kept = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
        fitted = trainer(callback, SeedEveryEpoch(0), kept, max_epochs=4, enable_checkpointing=True)
        fitted.fit(module, loader, loader, ckpt_path=ckpt)
        return {k: v.clone() for k, v in module.state_dict().items()}

    whole = run()
    for epoch in (0, 1):  # before and after they join, in the middle of epoch 1
        resumed = run(tmp_path / f"epoch={epoch}.ckpt", seed=1)
        assert [k for k in whole if not torch.equal(whole[k], resumed[k])] == []


def test_no_end(trainer: Trainers, tiny_net: Any, loader: Loader) -> None:
    callback = QuantizationAwareTraining(activations_from=0.5)
    with pytest.raises(ConfigError, match=r"activations_from=0.5 is a share of training, and this one has no end"):
        trainer(callback, max_epochs=-1).fit(classifier(tiny_net), loader, loader)
