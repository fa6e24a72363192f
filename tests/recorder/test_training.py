"""Curves of a training: points, phases, and the same record after an interruption."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import qat
from qat.layers import FakeQuantWeight
from qat.recorder import TrainingRecorder
from qat.recorder.training import phases_of
from qat.report.record import Phase, Training, read
from qat.training import Classifier, QuantizationAwareTraining

ROUNDED = 1e-4  # a record has five digits
PHASES = {"ranges move": 0.0, "ranges frozen": 0.5}


def fit(folder, epochs: int, ckpt_path=None) -> pl.Trainer:
    torch.manual_seed(0)
    images, labels = torch.randn(12, 3, 4, 4), torch.arange(12) % 2
    loader = DataLoader(TensorDataset(images, labels), batch_size=4)
    module = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), num_classes=2,
                        optimizer=partial(torch.optim.SGD, lr=0.1))  # fmt: skip
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, callbacks=[TrainingRecorder(folder, "qat", PHASES)],
        log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(module, loader, loader, ckpt_path=ckpt_path)
    return trainer


def test_a_phase_starts_at_the_first_batch_before_which_its_share_is_done():
    assert phases_of({}, 7) == ()
    assert phases_of({"a": 0.0, "b": 0.5, "c": 1.0}, 7) == (
        Phase(name="a", start=0, end=4),
        Phase(name="b", start=4, end=7),
    )


@pytest.mark.filterwarnings("ignore:The 'val_dataloader' does not have many workers")
def test_curves_of_a_training_that_was_interrupted_go_on(tmp_path):
    fit(tmp_path / "whole", 2)
    whole = read(tmp_path / "whole", Training, "qat")
    assert whole.steps == (1, 2, 3, 4, 5, 6)
    assert whole.lr == (0.1,) * 6
    assert whole.val_steps == (3, 6)
    assert whole.phases == (Phase(name="ranges move", start=0, end=3), Phase(name="ranges frozen", start=3, end=6))
    begun = fit(tmp_path / "begun", 1)
    begun.save_checkpoint(tmp_path / "last.ckpt")
    fit(tmp_path / "begun", 2, ckpt_path=tmp_path / "last.ckpt")
    resumed = read(tmp_path / "begun", Training, "qat")
    assert resumed == whole


@pytest.mark.parametrize(("recipe", "learned"), [("w4a4_lsq", True), ("w8a8", False)])
def test_it_is_told_which_scales_are_learned(small_net, images, tmp_path, recipe, learned):
    loader = DataLoader(TensorDataset(images, torch.arange(16) % 5), batch_size=8)
    module = Classifier(small_net.train(), num_classes=5, optimizer=partial(torch.optim.SGD, lr=0.01))
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
        callbacks=[QuantizationAwareTraining(recipe=recipe), TrainingRecorder(tmp_path, "qat")],
    )  # fmt: skip
    trainer.fit(module, loader, loader)
    found = read(tmp_path, Training, "qat")
    assert set(found.trained) <= set(found.scales)
    assert ("point.weight_quantizer" in found.trained) == learned
    assert bool(found.trained) == learned


class Direct(pl.LightningModule):
    """A stranger's project: the layers lie directly on it, and its forward is the network."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.conv(x)).mean((2, 3)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


class Two(Direct):
    """Two networks, one behind the other."""

    def __init__(self) -> None:
        pl.LightningModule.__init__(self)
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(144, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


@pytest.mark.parametrize(("kind", "modules"), [(Direct, None), (Two, ["body", "head"])])
def test_it_sees_the_networks_of_a_stranger_wherever_they_are(images, tmp_path, kind, modules):
    loader = DataLoader(TensorDataset(images, torch.arange(16) % 5), batch_size=2)
    callback, module = QuantizationAwareTraining(recipe="w4a8", modules=modules), kind()
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, callbacks=[callback, TrainingRecorder(tmp_path, "qat")],
    )  # fmt: skip
    trainer.fit(module, loader)
    networks = callback.prepared(module)
    begin = {name: f"{name}." if modules else "" for name in networks}  # told apart only where they are several
    found = read(tmp_path, Training, "qat")
    last = {
        begin[name] + path: float(q.scale.abs().mean())
        for name, network in networks.items()
        for path, q in qat.quantizers(network).items()
    }
    assert {path: values[-1] for path, values in found.scales.items()} == pytest.approx(last, rel=ROUNDED)
    assert set(found.oscillating) == {
        begin[name] + path
        for name, network in networks.items()
        for path, layer in network.named_modules()
        if isinstance(layer, FakeQuantWeight)
    }
