"""A run that was interrupted between epochs and resumed ends as the uninterrupted one, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader

from qat.errors import CheckpointError, ConfigError
from qat.training import Classifier, QuantizationAwareTraining, SeedEveryEpoch

Trainers = Callable[..., pl.Trainer]
Loader = DataLoader[Any]
EPOCHS = 4


class CrashError(Exception):
    pass


class Interrupt(pl.Callback):
    """Ends the run when an epoch starts."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_start(self, trainer: pl.Trainer, module: Any) -> None:
        if trainer.current_epoch == self.epoch:
            raise CrashError


def run(
    trainer: Trainers,
    tiny_net: type[nn.Module],
    loader: Loader,
    *callbacks: pl.Callback,
    seed: int = 0,
    ckpt: Path | None = None,
    weights: int = 7,
    recipe: str = "w8a8",
) -> dict[str, Tensor]:
    torch.manual_seed(weights)
    module = Classifier(
        tiny_net(),
        num_classes=4,
        optimizer=partial(SGD, lr=0.1, momentum=0.9, weight_decay=1e-3),
        scheduler=partial(OneCycleLR, max_lr=0.1),
    )
    torch.manual_seed(100 + weights)  # what was drawn before must not matter
    callback = QuantizationAwareTraining(recipe=recipe, freeze_observers_at=0.3, freeze_bn_at=0.8)
    fitted = trainer(callback, SeedEveryEpoch(seed), *callbacks, max_epochs=EPOCHS, enable_checkpointing=True)
    fitted.fit(module, loader, loader, ckpt_path=ckpt)
    return {k: v.clone() for k, v in module.state_dict().items()}


def checkpoint(folder: Path, *, after_training: bool) -> ModelCheckpoint:
    return ModelCheckpoint(folder, "{epoch}", save_top_k=-1, save_on_train_epoch_end=after_training)


@pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning")
def test_a_schedule_that_was_planned_for_another_end(
    trainer: Trainers, tiny_net: type[nn.Module], loader: Loader, tmp_path: Path
) -> None:
    run(trainer, tiny_net, loader, checkpoint(tmp_path, after_training=True))
    few = DataLoader(loader.dataset, batch_size=2)
    message = r"its schedule was planned for \d+ steps, and this training has \d+; go on with its epochs, batch size"
    with pytest.raises(CheckpointError, match=message):
        run(trainer, tiny_net, few, ckpt=str(tmp_path / "epoch=0.ckpt"))


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning")  # it goes on there
@pytest.mark.parametrize("after_training", [True, False])
def test_resumed_equals_uninterrupted(
    trainer: Trainers, tiny_net: type[nn.Module], loader: Loader, tmp_path: Path, after_training: bool
) -> None:
    """From a checkpoint of every phase, whether it was written when an epoch or when its validation ended."""
    whole = run(trainer, tiny_net, loader, checkpoint(tmp_path / "whole", after_training=after_training))
    with pytest.raises(CrashError):
        run(trainer, tiny_net, loader, Interrupt(2), checkpoint(tmp_path / "part", after_training=after_training))
    for last in ("whole/epoch=0.ckpt", "part/epoch=1.ckpt", "whole/epoch=2.ckpt"):
        goes_on = checkpoint((tmp_path / last).parent, after_training=after_training)
        resumed = run(trainer, tiny_net, loader, goes_on, ckpt=tmp_path / last, weights=8)
        assert whole.keys() == resumed.keys()
        assert [k for k in whole if not torch.equal(whole[k], resumed[k])] == [], last


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning")
@pytest.mark.parametrize("recipe", ["w4a8_lsq", "w4a4_lsq", "w4a4_pact", "w4a4_dorefa", "w8a8_symmetric"])
def test_every_kind_of_quantizer_resumes(
    trainer: Trainers, tiny_net: type[nn.Module], loader: Loader, tmp_path: Path, recipe: str
) -> None:
    """Each keeps its range under names of its own; w8a8 is above."""
    kept = checkpoint(tmp_path, after_training=True)
    whole = run(trainer, tiny_net, loader, kept, recipe=recipe)
    resumed = run(trainer, tiny_net, loader, kept, ckpt=tmp_path / "epoch=1.ckpt", weights=8, recipe=recipe)
    assert [k for k in whole if not torch.equal(whole[k], resumed[k])] == []


def test_same_seed_same_weights(trainer: Trainers, tiny_net: type[nn.Module], loader: Loader, tmp_path: Path) -> None:
    one, again, other = (
        run(trainer, tiny_net, loader, checkpoint(tmp_path / str(i), after_training=True), seed=seed)
        for i, seed in enumerate((0, 0, 1))
    )
    assert all(torch.equal(one[k], again[k]) for k in one)
    assert not all(torch.equal(one[k], other[k]) for k in one)  # the seed reaches dropout: 0 is a seed as well


def test_negative_seed() -> None:
    with pytest.raises(ConfigError, match="need seed >= 0, got -1"):
        SeedEveryEpoch(-1)


def test_a_checkpoint_of_a_float_training(
    trainer: Trainers, stranger: type[pl.LightningModule], loader: Loader, tmp_path: Path
) -> None:
    last = tmp_path / "float.ckpt"
    fitted = trainer()
    fitted.fit(stranger(), loader, loader)
    fitted.save_checkpoint(last)
    message = (
        r"is of a float training, .*Begin with its weights, Stranger\.load_from_checkpoint\(path\), and fit without"
    )
    with pytest.raises(ConfigError, match=message):
        trainer(QuantizationAwareTraining(), max_epochs=2).fit(stranger(), loader, loader, ckpt_path=last)
    module = stranger.load_from_checkpoint(last)  # the way out
    again = trainer(QuantizationAwareTraining(), max_epochs=2)
    again.fit(module, loader, loader)
    assert again.global_step == 8
