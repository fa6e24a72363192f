"""Oscillation control: the gradient it adds, the weights it holds, and that both resume to the bit."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint, ModelPruning
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader

import qat
from qat.errors import ConfigError
from qat.placement.seen import seen_weights
from qat.recipe import QuantRecipe
from qat.training import Classifier, OscillationControl, QuantizationAwareTraining, SeedEveryEpoch
from qat.training.oscillation import damping_gradient, require_calm

Trainers = Callable[..., pl.Trainer]
Loader = DataLoader[Any]
RECIPES = ["w4a4_lsq", "w4a8", "w8a8_per_tensor"]


class Watcher(pl.Callback):
    """Whether frozen weights keep their integers."""

    def __init__(self, control: OscillationControl) -> None:
        self.control, self.held = control, dict[str, tuple[Tensor, Tensor]]()
        self.moved, self.seen = 0, 0  # of frozen weights, before each batch

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        self.look(module)

    def on_train_end(self, trainer: pl.Trainer, module: Any) -> None:
        self.look(module)

    def look(self, module: Any) -> None:
        integers = {f"model.{name}": w.integers() for name, w in seen_weights(module.model).items()}
        for name, frozen in self.control.frozen().items():
            if name in self.held:
                before, was = self.held[name]
                self.moved += int((integers[name] != before)[was].sum())
                self.seen += int(was.sum())
                assert bool((frozen | ~was).all())  # nothing thaws
            self.held[name] = (integers[name], frozen.clone())


def classifier(tiny_net: type[nn.Module], seed: int = 0) -> Classifier:
    torch.manual_seed(seed)
    return Classifier(tiny_net(), num_classes=4, optimizer=partial(SGD, lr=0.5, momentum=0.9, weight_decay=1e-2))


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_gradient_is_twice_the_distance_to_the_grid(tiny_net: Any, loader: Loader, recipe: str) -> None:
    images = next(iter(loader))[0]
    prepared = qat.prepare(tiny_net().eval(), images, recipe=recipe)
    qat.calibrate(prepared, [images])
    for weight in seen_weights(prepared).values():
        layer, norm = weight.layer, weight.norm
        with torch.no_grad():
            layer.weight.mul_(1.5)  # some lie outside of the calibrated grid
        factor, scale, spec = weight.factor(), weight.scale(), weight.quantizer.spec
        seen = layer.weight.detach() * factor
        used = layer.quantized_weight(*(() if norm is None else (norm.weight, norm.running_var))).detach() * factor
        inside = (seen >= spec.qmin * scale) & (seen <= spec.qmax * scale)
        expected = torch.where(inside, 2 * (seen - used) * factor, torch.zeros(()))
        torch.testing.assert_close(damping_gradient(weight), expected, rtol=1e-4, atol=1e-6)


def test_damping_grows_from_nothing_and_the_threshold_falls() -> None:
    control = OscillationControl(damp=0.4, freeze=0.1, freeze_from=0.3)
    assert [control.strength(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([0.0, 0.2, 0.4])
    assert [control.threshold(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([0.3, 0.2, 0.1])
    assert [OscillationControl(freeze=0.1).threshold(p) for p in (0.0, 1.0)] == [0.1, 0.1]


def test_what_is_added_is_the_strength_of_the_step_times_the_gradient(
    trainer: Trainers, tiny_net: Any, loader: Loader
) -> None:
    class Before(pl.Callback):
        def on_before_optimizer_step(self, trainer: pl.Trainer, module: Any, optimizer: Any) -> None:
            layer = module.model.conv
            self.gradient, self.step = layer.weight.grad.clone(), trainer.global_step
            self.damping = damping_gradient(seen_weights(module.model)["conv"])

    class After(pl.Callback):
        def on_before_optimizer_step(self, trainer: pl.Trainer, module: Any, optimizer: Any) -> None:
            strength = 3.0 * (1 - math.cos(math.pi * before.step / 4)) / 2  # of two epochs with two steps each
            expected = before.gradient + strength * before.damping
            torch.testing.assert_close(module.model.conv.weight.grad, expected)
            seen.append(strength)

    seen: list[float] = []
    before = Before()
    callbacks = [QuantizationAwareTraining(recipe="w4a4_lsq"), before, OscillationControl(damp=3.0), After()]
    trainer(*callbacks, max_epochs=2, accumulate_grad_batches=2).fit(classifier(tiny_net), loader, loader)
    assert len(seen) == 4
    assert seen[0] == 0
    assert seen[-1] > 2.5


@pytest.mark.parametrize("strength", [0.05, 0.5])
def test_damped_weights_lie_nearer_to_their_integers(
    trainer: Trainers, tiny_net: Any, loader: Loader, strength: float
) -> None:
    def distance(*more: pl.Callback) -> float:
        module = classifier(tiny_net)
        trainer(QuantizationAwareTraining(recipe="w4a4_lsq"), SeedEveryEpoch(0), *more, max_epochs=8).fit(
            module, loader, loader
        )
        layers = seen_weights(module.model).values()  # type: ignore[arg-type]
        off = [(w.layer.weight / w.scale() - w.integers()).detach().abs() for w in layers]
        return float(torch.cat([o[o < 0.5] for o in off]).mean())

    assert distance(OscillationControl(damp=strength)) < distance()


@pytest.mark.parametrize("recipe", RECIPES)
def test_frozen_integers_never_change(
    trainer: Trainers, tiny_net: Any, loader: Loader, recipe: str, caplog: pytest.LogCaptureFixture
) -> None:
    control = OscillationControl(freeze=0.05, freeze_from=0.2, momentum=0.1)
    watcher = Watcher(control)
    callback = QuantizationAwareTraining(recipe=recipe, freeze_observers_at=0.3, freeze_bn_at=0.6)
    with caplog.at_level(logging.INFO, "qat"):
        trainer(callback, control, watcher, max_epochs=12).fit(classifier(tiny_net), loader, loader)
    assert watcher.seen > 50
    assert watcher.moved == 0
    masks = control.frozen().values()
    share = 100 * sum(int(m.sum()) for m in masks) / sum(m.numel() for m in masks)
    assert f"oscillation control froze {share:.2f} % of the weights" in caplog.text


def test_observed_ranges_hold_still_before_a_weight_is_frozen(trainer: Trainers, tiny_net: Any, loader: Loader) -> None:
    class Frozen(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            shares.append(sum(int(m.sum()) for m in control.frozen().values()))

    shares: list[int] = []
    control = OscillationControl(freeze=0.01, momentum=0.5)
    callback = QuantizationAwareTraining(recipe="w4a8", freeze_observers_at=0.5)
    trainer(callback, control, Frozen(), max_epochs=4).fit(classifier(tiny_net), loader, loader)
    assert shares[:8] == [0] * 8
    assert shares[8] > 0  # counted before


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning")  # it goes on there
@pytest.mark.parametrize("recipe", ["w4a4_lsq", "w4a8"])
def test_resumed_equals_uninterrupted(
    trainer: Trainers, tiny_net: Any, loader: Loader, tmp_path: Path, recipe: str
) -> None:
    def run(folder: Path, ckpt: Path | None = None, seed: int = 0) -> tuple[dict[str, Tensor], dict[str, Any]]:
        module, control = classifier(tiny_net, seed), OscillationControl(damp=0.1, freeze=0.05, momentum=0.1)
        kept = ModelCheckpoint(folder, "{epoch}", save_top_k=-1)
        callback = QuantizationAwareTraining(recipe=recipe, freeze_observers_at=0.3)
        fitted = trainer(callback, SeedEveryEpoch(0), control, kept, max_epochs=6, enable_checkpointing=True)
        fitted.fit(module, loader, loader, ckpt_path=ckpt)
        return module.state_dict(), control.state_dict()

    whole, remembered = run(tmp_path / "whole")
    assert any(bool(state["frozen"].any()) for state in remembered.values())
    resumed, again = run(tmp_path / "whole", tmp_path / "whole" / "epoch=3.ckpt", seed=1)
    assert [k for k in whole if not torch.equal(whole[k], resumed[k])] == []
    for name, state in remembered.items():
        for key, tensor in state.items():
            assert torch.equal(tensor, again[name][key]), (name, key)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"oscillation needs damp or freeze, e.g."),
        ({"damp": 0}, r"need oscillation.damp > 0, got 0"),
        ({"damp": math.nan}, r"need oscillation.damp > 0, got nan"),
        ({"damp": 1, "freeze_from": 0.1}, r"oscillation.freeze_from=0.1 has no effect without oscillation.freeze"),
        ({"freeze": 1}, r"need 0 < oscillation.freeze <= oscillation.freeze_from < 1, got 1 and 1"),
        ({"freeze": 0.2, "freeze_from": 0.1}, r"oscillation.freeze_from < 1, got 0.2 and 0.1"),
        ({"freeze": 0.2, "momentum": 0}, r"need 0 < oscillation.momentum <= 1, got 0"),
    ],
)
def test_values_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OscillationControl(**options)


def test_recipes_that_it_does_not_go_with() -> None:
    require_calm(QuantRecipe.parse("w4a4_lsq"), freezes=True, freeze_observers_at=1)
    require_calm(QuantRecipe.parse("w4a8"), freezes=False, freeze_observers_at=1)
    with pytest.raises(ConfigError, match=r"oscillation.freeze has no effect with freeze_observers_at=1"):
        require_calm(QuantRecipe.parse("w4a8"), freezes=True, freeze_observers_at=1)
    with pytest.raises(ConfigError, match=r"recipe w4a4_dorefa rounds a tanh of its weights"):
        require_calm(QuantRecipe.parse("w4a4_dorefa"), freezes=False, freeze_observers_at=0.5)


def test_a_weight_behind_a_tanh(trainer: Trainers, tiny_net: Any, loader: Loader) -> None:
    with pytest.raises(ConfigError, match=r"model.conv rounds a tanh of its weight"):
        trainer(QuantizationAwareTraining(recipe="w4a4_dorefa"), OscillationControl(damp=1)).fit(
            classifier(tiny_net), loader, loader
        )


def test_no_prepared_network(trainer: Trainers, tiny_net: Any, loader: Loader) -> None:
    with pytest.raises(ConfigError, match=r"Classifier has no prepared network whose weights could oscillate"):
        trainer(OscillationControl(damp=1)).fit(classifier(tiny_net), loader, loader)


def test_no_end(trainer: Trainers, stranger: Any, loader: Loader) -> None:
    callbacks = [QuantizationAwareTraining(recipe="w4a4_lsq"), OscillationControl(damp=1)]
    with pytest.raises(ConfigError, match=r"oscillation control grows stronger towards the end of training, and this"):
        trainer(*callbacks, max_epochs=-1).fit(stranger(), loader, loader)


def test_weights_that_are_pruned_while_training(trainer: Trainers, tiny_net: Any, loader: Loader) -> None:
    callbacks = [
        QuantizationAwareTraining(recipe="w4a4_lsq"),
        OscillationControl(damp=1),
        ModelPruning("l1_unstructured", amount=0.5),
    ]
    with pytest.raises(ConfigError, match=r"oscillation control and ModelPruning both set weights after a step"):
        trainer(*callbacks).fit(classifier(tiny_net), loader, loader)


def test_one_scale_for_a_weight_on_several_processes(
    trainer: Trainers, tiny_net: Any, loader: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qat.training.oscillation.several", lambda: True)
    callbacks = [QuantizationAwareTraining(recipe="w8a8_per_tensor"), OscillationControl(damp=1)]
    with pytest.raises(ConfigError, match=r"model.conv has one scale for its whole weight, .* needs granularity"):
        trainer(*callbacks).fit(classifier(tiny_net), loader, loader)


def test_layers_that_lie_directly_on_the_module(trainer: Trainers, loader: Loader, direct: Any) -> None:
    control, module = OscillationControl(freeze=0.02, momentum=0.5), direct()
    trainer(QuantizationAwareTraining(recipe="w4a4_lsq"), control, max_epochs=3).fit(module, loader)
    assert set(control.frozen()) == {"forward.conv", "forward.fc"}
