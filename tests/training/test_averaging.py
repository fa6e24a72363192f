"""Averaged weights: the average in closed form, grids that fit it, and one model in checkpoint, module and file."""

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
from qat.functional.averaging import share_kept
from qat.placement.seen import seen_weights
from qat.training import (
    AveragedWeights,
    Classifier,
    Distillation,
    OscillationControl,
    QuantizationAwareTraining,
    ReestimatedBatchNorm,
    SeedEveryEpoch,
)
from qat.training.saved import join

Trainers = Callable[..., pl.Trainer]
Loader = DataLoader[Any]
RECIPES = ["w8a8", "w4a4_lsq", "w8a8_per_tensor", "w4a4_dorefa"]


class History(pl.Callback):
    """The state of the module after every step, and what was validated."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []
        self.validated: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        self.steps.append({k: v.clone() for k, v in module.state_dict().items()})

    def on_validation_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, index: int, *_: Any) -> None:
        if index == 0 and not trainer.sanity_checking:
            self.validated.append({k: v.clone() for k, v in module.state_dict().items()})


def classifier(tiny_net: Any, seed: int = 0, **more: Any) -> Classifier:
    torch.manual_seed(seed)
    return Classifier(tiny_net(), num_classes=4, optimizer=partial(SGD, lr=0.2, momentum=0.9), **more)


def averages(steps: list[dict[str, Tensor]], key: str, decay: float) -> Tensor:
    average = steps[0][key].clone()
    for t, state in enumerate(steps[1:], start=1):
        kept = share_kept(t, decay)
        average = kept * average + (1 - kept) * state[key]
    return average


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_is_averaged_and_what_is_not(trainer: Trainers, tiny_net: Any, loader: Loader, recipe: str) -> None:
    history, module = History(), classifier(tiny_net)
    callbacks = [QuantizationAwareTraining(recipe=recipe), SeedEveryEpoch(0), AveragedWeights(decay=0.6), history]
    trainer(*callbacks, max_epochs=3).fit(module, loader, loader)
    last, state = history.steps[-1], module.state_dict()
    parameters = {name for name, _ in module.named_parameters()}
    ranges_of_weights = {k for k in state if "weight_quantizer" in k and k not in parameters}
    for key, tensor in state.items():
        if key in parameters or key.endswith(("running_mean", "running_var")):
            torch.testing.assert_close(tensor, averages(history.steps, key, 0.6), rtol=1e-4, atol=1e-6)
            if ".step" not in key:
                assert not torch.equal(tensor, last[key]), key
        elif key not in ranges_of_weights:  # zero points and ranges of activations, counters: to the bit
            assert torch.equal(tensor, last[key]), key
    assert all(torch.equal(history.validated[-1][k], state[k]) for k in state)


@pytest.mark.parametrize(("frozen", "fits"), [(1.0, True), (0.5, False)])
def test_ranges_of_weights_are_those_of_the_average_until_they_are_frozen(
    trainer: Trainers, tiny_net: Any, loader: Loader, frozen: float, fits: bool
) -> None:
    module, history = classifier(tiny_net), History()
    callback = QuantizationAwareTraining(recipe="w8a8_per_tensor", freeze_observers_at=frozen, freeze_bn_at=1.0)
    trainer(callback, AveragedWeights(decay=0.9), history, max_epochs=4).fit(module, loader, loader)
    for name, weight in seen_weights(module.model).items():  # type: ignore[arg-type]
        largest = (weight.layer.weight * weight.factor()).abs().max() / weight.quantizer.spec.qmax
        scale = weight.quantizer.scale
        if fits:
            torch.testing.assert_close(scale, largest)
        else:
            assert torch.equal(scale, history.steps[-1][f"model.{name}.weight_quantizer.scale"])


def test_the_current_weights_train_on_as_without_an_average(trainer: Trainers, tiny_net: Any, loader: Loader) -> None:
    histories = []
    for more in ([], [AveragedWeights(decay=0.9)]):
        histories.append(History())
        callbacks = [QuantizationAwareTraining(recipe="w4a8"), SeedEveryEpoch(0), *more, histories[-1]]
        trainer(*callbacks, max_epochs=3).fit(classifier(tiny_net), loader, loader)
    for plain, averaged in zip(*(h.steps for h in histories), strict=True):
        assert [k for k in plain if not torch.equal(plain[k], averaged[k])] == []


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning")  # it goes on there
@pytest.mark.parametrize("recipe", ["w8a8", "w4a4_lsq"])
def test_resumed_equals_uninterrupted(
    trainer: Trainers, tiny_net: Any, loader: Loader, tmp_path: Path, recipe: str
) -> None:
    def run(ckpt: Path | None = None, seed: int = 0) -> tuple[dict[str, Tensor], History]:
        module, history = classifier(tiny_net, seed), History()
        kept = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
        callbacks = [QuantizationAwareTraining(recipe=recipe), SeedEveryEpoch(0), AveragedWeights(decay=0.8)]
        fitted = trainer(*callbacks, history, kept, max_epochs=4, enable_checkpointing=True)
        fitted.fit(module, loader, loader, ckpt_path=ckpt)
        return module.state_dict(), history

    whole, every = run()
    resumed, second = run(tmp_path / "epoch=1.ckpt", seed=1)
    assert [k for k in whole if not torch.equal(whole[k], resumed[k])] == []
    for one, other in zip(every.steps[8:], second.steps, strict=True):
        assert [k for k in one if not torch.equal(one[k], other[k])] == []


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning")
@pytest.mark.parametrize("after_training", [True, False])
def test_a_checkpoint_with_nothing_left_to_train_is_the_average_too(
    trainer: Trainers, tiny_net: Any, loader: Loader, tmp_path: Path, after_training: bool
) -> None:
    def run(ckpt: Path | None) -> dict[str, Tensor]:
        kept = ModelCheckpoint(tmp_path, "last", save_on_train_epoch_end=after_training)
        module = classifier(tiny_net, seed=0 if ckpt is None else 1)
        callbacks = [QuantizationAwareTraining(), SeedEveryEpoch(0), AveragedWeights(decay=0.8), kept]
        trainer(*callbacks, max_epochs=2, enable_checkpointing=True).fit(module, loader, loader, ckpt_path=ckpt)
        return {k: v.clone() for k, v in module.state_dict().items()}

    whole, again = run(None), run(tmp_path / "last.ckpt")
    assert [k for k in whole if not torch.equal(whole[k], again[k])] == []


@pytest.mark.runtime
def test_checkpoint_module_and_file_are_one_model(
    trainer: Trainers, tiny_net: Any, loader: Loader, tmp_path: Path
) -> None:
    module = classifier(tiny_net)
    kept = ModelCheckpoint(tmp_path, "last")
    callback = QuantizationAwareTraining(export=tmp_path / "int8.onnx")
    trainer(callback, AveragedWeights(decay=0.9), kept, max_epochs=2, enable_checkpointing=True).fit(
        module, loader, loader
    )
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    join(content)
    saved = content["state_dict"]
    assert [k for k, v in module.state_dict().items() if not torch.equal(v, saved[k])] == []
    assert callback.report is not None
    assert callback.report.stages[-1].agreement == 100.0


@pytest.mark.runtime
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning")
@pytest.mark.parametrize("more", [[], [ReestimatedBatchNorm(batches=2)]], ids=["average", "average and statistics"])
def test_what_had_ended_is_exported_as_it_was(
    trainer: Trainers, tiny_net: Any, loader: Loader, tmp_path: Path, more: list[pl.Callback]
) -> None:
    """`fit` with the checkpoint of a training that had ended, and `export`: the average, not the last step."""
    files = []
    for name, ckpt in (("whole", None), ("again", tmp_path / "last.ckpt")):
        kept = ModelCheckpoint(tmp_path, "last")
        callback = QuantizationAwareTraining(recipe="w4a8", export=tmp_path / f"{name}.onnx")
        callbacks = [callback, SeedEveryEpoch(0), AveragedWeights(decay=0.8), *more, kept]
        module = classifier(tiny_net, seed=0 if ckpt is None else 1)
        trainer(*callbacks, max_epochs=2, enable_checkpointing=True).fit(module, loader, loader, ckpt_path=ckpt)
        assert callback.report is not None
        assert callback.report.stages[-1].agreement == 100.0
        files.append((tmp_path / f"{name}.onnx").read_bytes())
    assert files[0] == files[1]


def test_where_gradients_accumulate_it_averages_what_was_stepped_to(
    trainer: Trainers, tiny_net: Any, loader: Loader
) -> None:
    class Steps(History):
        def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *args: Any) -> None:
            if trainer.global_step > len(self.steps):
                super().on_train_batch_end(trainer, module, *args)

    module, history = classifier(tiny_net), Steps()
    callbacks = [QuantizationAwareTraining(recipe="w8a8"), AveragedWeights(decay=0.6), history]
    trainer(*callbacks, max_epochs=3, accumulate_grad_batches=2).fit(module, loader, loader)
    assert len(history.steps) == 6
    for key in ("model.conv.weight", "model.norm.running_mean", "model.norm.running_var"):
        expected = averages(history.steps, key, 0.6)
        torch.testing.assert_close(module.state_dict()[key], expected, rtol=1e-4, atol=1e-6)


def test_a_teacher_is_not_averaged(trainer: Trainers, tiny_net: Any, loader: Loader) -> None:
    class Look(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
            assert module.__dict__["teacher"] is teacher
            assert "teacher" not in averaged.average.__dict__

    teacher, averaged = tiny_net(), AveragedWeights(decay=0.9)
    module = classifier(tiny_net, distill=Distillation(), teacher=teacher)
    trainer(QuantizationAwareTraining(), averaged, Look()).fit(module, loader, loader)


def test_a_second_fit_begins_a_new_average(trainer: Trainers, tiny_net: Any, loader: Loader) -> None:
    module, averaged = classifier(tiny_net), AveragedWeights(decay=0.9)
    for _ in range(2):
        history = History()
        trainer(QuantizationAwareTraining(recipe="w8a8"), averaged, history).fit(module, loader, loader)
        key = "model.conv.weight"
        torch.testing.assert_close(module.state_dict()[key], averages(history.steps, key, 0.9))
    validated = trainer(averaged).validate(module, loader, verbose=False)
    assert validated == trainer().validate(module, loader, verbose=False)


def test_a_checkpoint_from_within_a_validation_is_the_same_as_from_behind_it(
    trainer: Trainers, tiny_net: Any, loader: Loader, tmp_path: Path
) -> None:
    """A run that is stopped there saves while the module holds the average."""

    class Save(pl.Callback):
        def save(self, trainer: pl.Trainer, name: str) -> None:
            if not trainer.sanity_checking and trainer.current_epoch == 1:
                trainer.save_checkpoint(tmp_path / f"{name}.ckpt")

        def on_validation_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            self.save(trainer, "within")

        def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
            self.save(trainer, "behind")

    callbacks = [QuantizationAwareTraining(), AveragedWeights(decay=0.8), Save()]
    trainer(*callbacks, max_epochs=3).fit(classifier(tiny_net), loader, loader)
    within, behind = (torch.load(tmp_path / f"{name}.ckpt", weights_only=True) for name in ("within", "behind"))
    for part in ("state_dict", "current_model_state"):
        assert [k for k in behind[part] if not torch.equal(behind[part][k], within[part][k])] == []


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.5])
def test_a_decay_lies_in_0_to_1(decay: float) -> None:
    with pytest.raises(ConfigError, match=rf"need 0 < ema.decay < 1, got {decay}"):
        AveragedWeights(decay=decay)


@pytest.mark.parametrize("callbacks", [[], [QuantizationAwareTraining()]])
def test_it_stands_behind(trainer: Trainers, tiny_net: Any, loader: Loader, callbacks: list[pl.Callback]) -> None:
    with pytest.raises(ConfigError, match=r"Classifier has no prepared network to average; AveragedWeights stands"):
        trainer(AveragedWeights(), *callbacks).fit(classifier(tiny_net), loader, loader)


def test_weights_that_are_frozen_are_not_averaged(trainer: Trainers, tiny_net: Any, loader: Loader) -> None:
    callbacks = [QuantizationAwareTraining(recipe="w4a4_lsq"), AveragedWeights(), OscillationControl(freeze=0.1)]
    with pytest.raises(ConfigError, match=r"ema averages weights, and oscillation.freeze holds them"):
        trainer(*callbacks).fit(classifier(tiny_net), loader, loader)


def test_it_goes_with_damping(trainer: Trainers, tiny_net: Any, loader: Loader) -> None:
    module = classifier(tiny_net)
    callbacks = [QuantizationAwareTraining(recipe="w4a4_lsq"), AveragedWeights(), OscillationControl(damp=0.1)]
    trainer(*callbacks).fit(module, loader, loader)
    assert all(q.calibrated for q in qat.quantizers(module.model).values())  # type: ignore[arg-type]


def test_layers_that_lie_directly_on_the_module(trainer: Trainers, loader: Loader, direct: Any) -> None:
    history, module = History(), direct()
    callback = QuantizationAwareTraining(recipe="w8a8", freeze_observers_at=1, freeze_bn_at=1)
    trainer(callback, AveragedWeights(decay=0.9), history, max_epochs=2).fit(module, loader)
    state = module.state_dict()
    torch.testing.assert_close(state["conv.weight"], averages(history.steps, "conv.weight", 0.9), rtol=1e-4, atol=1e-6)
    scale = module.conv.weight.abs().amax((1, 2, 3)) / 63  # onnxruntime's 7 bits
    torch.testing.assert_close(state["conv.weight_quantizer.scale"], scale)
