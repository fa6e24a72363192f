"""A stranger's project: a LightningModule that knows nothing of quantization, its data, and a quiet Trainer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset


class TinyNet(nn.Module):
    """`[N, 3, 8, 8] -> [N, 4]`, with what makes resuming hard: dropout and BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.3)
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.norm(self.conv(x)))).flatten(1)
        return self.fc(self.dropout(x))


class Stranger(pl.LightningModule):
    """Holds its network under a name of its choice."""

    def __init__(self, name: str = "model", network: nn.Module | None = None) -> None:
        super().__init__()
        self.name = name
        setattr(self, name, network or TinyNet())
        self.criterion = nn.CrossEntropyLoss(weight=torch.ones(4))

    @property
    def network(self) -> nn.Module:
        return getattr(self, self.name)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = self.criterion(self(x), y)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", F.cross_entropy(self(x), y))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


class Direct(pl.LightningModule):
    """Its own forward is the network."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.conv(x)).mean((2, 3)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.5)


@pytest.fixture
def tiny_net() -> type[TinyNet]:
    return TinyNet


@pytest.fixture
def stranger() -> type[Stranger]:
    return Stranger


@pytest.fixture
def direct() -> type[Direct]:
    return Direct


@pytest.fixture
def loader() -> DataLoader[Any]:
    """Four batches of 8 images `[3, 8, 8]`, always in the same order."""
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(32, 3, 8, 8, generator=generator), torch.arange(32) % 4
    return DataLoader(TensorDataset(images, labels), batch_size=8)


@pytest.fixture
def trainer(tmp_path: Path) -> Callable[..., pl.Trainer]:
    """`trainer(*callbacks, **options)`: on the CPU, silent, writing nothing."""

    def build(*callbacks: pl.Callback, **options: Any) -> pl.Trainer:
        quiet = {
            "max_epochs": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        }
        return pl.Trainer(
            **{**quiet, **options}, callbacks=list(callbacks), accelerator="cpu", devices=1, default_root_dir=tmp_path
        )

    return build
