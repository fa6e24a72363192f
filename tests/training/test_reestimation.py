"""Statistics measured when training ends: those of the batches, in the module and in the last checkpoint."""

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

from qat.errors import ConfigError
from qat.reestimate import reestimate_batchnorm
from qat.training import (
    AveragedWeights,
    CarefulCheckpointIO,
    Classifier,
    QuantizationAwareTraining,
    ReestimatedBatchNorm,
    SeedEveryEpoch,
)
from qat.training.reestimation import statistics
from qat.training.saved import join

Trainers = Callable[..., pl.Trainer]
Loader = DataLoader[Any]
STATISTICS = ("running_mean", "running_var")


def fit(
    trainer: Trainers, tiny_net: Any, loader: Loader, folder: Path, *more: pl.Callback, ckpt: Path | None = None
) -> tuple[Classifier, dict[str, Any]]:
    torch.manual_seed(0)
    module = Classifier(tiny_net(), num_classes=4, optimizer=partial(SGD, lr=0.1, momentum=0.9))
    kept = ModelCheckpoint(folder, "{epoch}", save_top_k=-1, save_last=True)
    callbacks = [QuantizationAwareTraining(recipe="w4a8"), SeedEveryEpoch(0), *more, kept]
    trainer(*callbacks, max_epochs=2, enable_checkpointing=True, plugins=[CarefulCheckpointIO()]).fit(
        module, loader, DataLoader(loader.dataset, batch_size=8), ckpt_path=ckpt
    )
    contents = {path.stem: torch.load(path, weights_only=True) for path in sorted(folder.glob("*.ckpt"))}
    for content in contents.values():
        join(content)
    return module, contents


def different(a: dict[str, Tensor], b: dict[str, Tensor]) -> set[str]:
    assert a.keys() == b.keys()
    return {key for key in a if not torch.equal(a[key], b[key])}


def test_module_and_last_checkpoint_have_them_and_nothing_else_changes(
    trainer: Trainers, tiny_net: Any, loader: Loader, tmp_path: Path
) -> None:
    plain, before = fit(trainer, tiny_net, loader, tmp_path / "plain")
    module, after = fit(trainer, tiny_net, loader, tmp_path / "measured", ReestimatedBatchNorm(batches=2))
    changed = different(plain.state_dict(), module.state_dict())
    assert changed == {f"model.norm.{which}" for which in STATISTICS}
    reestimate_batchnorm(plain.model, loader, max_batches=2)
    assert different(plain.state_dict(), module.state_dict()) == set()
    for name in ("last", "epoch=1"):
        assert different(after[name]["state_dict"], module.state_dict()) == set()
        momenta = [
            [s["momentum_buffer"] for s in content[name]["optimizer_states"][0]["state"].values()]
            for content in (before, after)
        ]
        assert all(torch.equal(a, b) for a, b in zip(*momenta, strict=True))
        assert after[name].keys() == before[name].keys()
    assert different(after["epoch=0"]["state_dict"], before["epoch=0"]["state_dict"]) == set()


def test_with_an_average_it_measures_the_average_and_training_goes_on_from_its_own(
    trainer: Trainers, tiny_net: Any, loader: Loader, tmp_path: Path
) -> None:
    average = [AveragedWeights(decay=0.9), AveragedWeights(decay=0.9)]
    plain, before = fit(trainer, tiny_net, loader, tmp_path / "plain", average[0])
    module, after = fit(trainer, tiny_net, loader, tmp_path / "both", average[1], ReestimatedBatchNorm(batches=3))
    reestimate_batchnorm(plain.model, loader, max_batches=3)
    assert different(plain.state_dict(), module.state_dict()) == set()
    assert different(after["last"]["state_dict"], module.state_dict()) == set()
    assert different(after["last"]["current_model_state"], before["last"]["current_model_state"]) == set()


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning")
def test_a_checkpoint_with_nothing_left_to_train_is_measured_too(
    trainer: Trainers, tiny_net: Any, loader: Loader, tmp_path: Path
) -> None:
    fit(trainer, tiny_net, loader, tmp_path)
    module, _ = fit(trainer, tiny_net, loader, tmp_path, ReestimatedBatchNorm(batches=2), ckpt=tmp_path / "last.ckpt")
    expected, _ = fit(trainer, tiny_net, loader, tmp_path / "other", ReestimatedBatchNorm(batches=2))
    assert different(module.state_dict(), expected.state_dict()) == set()


def test_a_teacher_that_the_step_calls_keeps_its_own(trainer: Trainers, tiny_net: Any, loader: Loader) -> None:
    class Taught(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.teacher = tiny_net(), tiny_net().requires_grad_(False)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.teacher.eval()
            return (self.teacher(batch[0]) - self.model(batch[0])).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return SGD(self.model.parameters(), lr=0.1)

    module = Taught()
    before = {k: v.clone() for k, v in module.teacher.state_dict().items()}
    trainer(QuantizationAwareTraining(modules="model"), ReestimatedBatchNorm(batches=2)).fit(module, loader)
    assert different(before, module.teacher.state_dict()) == set()
    assert list(statistics(module)) == [f"model.norm.{which}" for which in STATISTICS]


def test_no_random_number_is_drawn(trainer: Trainers, tiny_net: Any, loader: Loader, tmp_path: Path) -> None:
    shuffled = DataLoader(loader.dataset, batch_size=8, shuffle=True)
    numbers = []
    for name, more in (("plain", []), ("measured", [ReestimatedBatchNorm(batches=2)])):
        fit(trainer, tiny_net, shuffled, tmp_path / name, *more)
        numbers.append(torch.rand(3))
    assert torch.equal(*numbers)


@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_a_number_of_batches(value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"need reestimate_bn >= 1, a number of batches, got {value}; 50 is usual"):
        ReestimatedBatchNorm(batches=value)


def test_no_prepared_network(trainer: Trainers, tiny_net: Any, loader: Loader) -> None:
    module = Classifier(tiny_net(), num_classes=4, optimizer=partial(SGD, lr=0.1))
    with pytest.raises(ConfigError, match=r"Classifier has no prepared network whose BatchNorm could be measured"):
        trainer(ReestimatedBatchNorm()).fit(module, loader, loader)
