"""What stands behind the bar, and bars of other stages."""

from __future__ import annotations

import io
from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from rich.console import Console
from torch.utils.data import DataLoader, TensorDataset

from qat.training import Classifier, QuantizationAwareTraining
from qat.training import progress as progress_module
from qat.training.progress import StageBar, TrainingBar, followed, working


class Noted(TrainingBar):
    def __init__(self) -> None:
        super().__init__()
        self.noted: list[dict] = []

    def get_metrics(self, trainer, pl_module):
        self.noted.append(super().get_metrics(trainer, pl_module))
        return self.noted[-1]


def test_the_bar_shows_top1_in_percent_and_the_phase(small_net, images, tmp_path):
    loader = DataLoader(TensorDataset(images, torch.arange(16) % 5), batch_size=4)
    module = Classifier(small_net.train(), num_classes=5, optimizer=partial(torch.optim.SGD, lr=0.01))
    bar = Noted()
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False,
        default_root_dir=tmp_path, callbacks=[QuantizationAwareTraining(), bar],
    )  # fmt: skip
    trainer.fit(module, loader, loader)
    last = bar.noted[-1]
    assert last["phase"] == "ranges and BatchNorm statistics frozen"
    assert 0.0 <= float(last["top-1, %"]) <= 100.0
    assert "val/top1" not in last
    assert {shown["phase"] for shown in bar.noted if "phase" in shown} >= {"learn ranges", "ranges frozen"}


def test_batches_are_the_same_with_and_without_a_terminal(monkeypatch):
    assert list(followed([1, 2, 3], "calibrating")) == [1, 2, 3]
    screen = io.StringIO()
    terminal = partial(Console, file=screen, force_terminal=True, width=100)
    monkeypatch.setattr(progress_module, "Console", lambda stderr: terminal())
    assert list(followed(iter([1, 2, 3]), "calibrating", total=3)) == [1, 2, 3]
    assert "calibrating" in screen.getvalue()
    assert "100%" in screen.getvalue()


@pytest.fixture
def screen(monkeypatch):
    """What a terminal shows."""
    shown = io.StringIO()
    terminal = partial(Console, file=shown, force_terminal=True, width=100)
    monkeypatch.setattr(progress_module, "Console", lambda stderr: terminal())
    return shown


def test_a_validation_outside_of_training_has_a_bar(screen, small_net, images, tmp_path):
    loader = DataLoader(TensorDataset(images, torch.arange(16) % 5), batch_size=4)
    module = Classifier(small_net, num_classes=5, optimizer=partial(torch.optim.SGD, lr=0.01))
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        default_root_dir=tmp_path, callbacks=[StageBar("measuring top-1")],
    )  # fmt: skip
    trainer.validate(module, loader, verbose=False)
    assert "measuring top-1" in screen.getvalue()
    assert "100%" in screen.getvalue()


def test_a_stage_that_cannot_say_how_far_it_is_has_its_name(screen):
    with working("converting"):
        pass
    assert "converting" in screen.getvalue()


def test_nothing_is_shown_where_there_is_no_terminal(capfd):
    with working("converting"):
        assert list(followed([1], "calibrating")) == [1]
    assert capfd.readouterr() == ("", "")
