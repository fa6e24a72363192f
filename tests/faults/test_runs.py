"""Runs that meet bad luck: odd batches, a dead worker, a folder in use, a stale error."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from qat.training import Classifier, QuantizationAwareTraining
from qat.training.workers import explained_workers

CONF = Path(__file__).parents[2] / "conf"


def config(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", list(overrides))


def fit(network: nn.Module, images: Tensor, *, batch_size: int, folder: Path, **options) -> Classifier:
    labels = torch.arange(len(images)) % 5
    loader = DataLoader(TensorDataset(images, labels), batch_size, **options)
    module = Classifier(network.train(), num_classes=5, optimizer=lambda p: torch.optim.SGD(p, lr=0.01))
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, callbacks=[QuantizationAwareTraining()],
    )  # fmt: skip
    trainer.fit(module, loader)
    return module


pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*number of training batches"),
    pytest.mark.filterwarnings("ignore:.*You defined a `validation_step`"),
]


@pytest.mark.parametrize(("count", "batch_size"), [(3, 1), (7, 4), (5, 4)])
def test_batches_of_one_and_a_last_incomplete_one(
    small_net: nn.Module, images: Tensor, tmp_path: Path, count: int, batch_size: int
) -> None:
    module = fit(small_net, images[:count], batch_size=batch_size, folder=tmp_path)
    assert all(bool(torch.isfinite(v).all()) for v in module.state_dict().values())


DEADLY = """
import os, torch
from torch.utils.data import DataLoader
from qat.errors import DataError
from qat.training.workers import explained_workers

class Deadly(torch.utils.data.Dataset):
    def __len__(self):
        return 16
    def __getitem__(self, index):
        if index == 9:
            os._exit(1)  # as when the system is short of memory
        return torch.zeros(3)

try:
    with explained_workers():
        list(DataLoader(Deadly(), 4, num_workers=1))
except DataError as error:
    print(error)
"""


def test_a_worker_that_dies() -> None:
    """In a process of its own: torch tells by a signal handler, which would stay."""
    found = subprocess.run([sys.executable, "-c", DEADLY], capture_output=True, text=True, timeout=120, check=False)
    assert re.search(r"DataLoader worker .* exited unexpectedly.* lower data\.num_workers \(0 reads", found.stdout), (
        found
    )


def test_other_errors_pass_the_workers() -> None:
    with pytest.raises(RuntimeError, match="something else"), explained_workers():
        raise RuntimeError("something else")
