"""Quantization-aware training in a Lightning project: the module and its data stay, the Trainer gets one callback.

python examples/lightning_callback.py      scanned digits, half a minute; leaves digits.onnx and says how it compares
"""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, random_split

import qat


class DigitClassifier(pl.LightningModule):
    """Knows nothing of quantization."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        """`[N, 1, 8, 8] -> [N, 10]`."""
        return self.model(images)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """The loss."""
        images, labels = batch
        return F.cross_entropy(self(images), labels)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Top-1."""
        images, labels = batch
        self.log("top1", (self(images).argmax(1) == labels).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """From `self.parameters()`: those of the fake-quant network by then."""
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class Digits(pl.LightningDataModule):
    """1,797 scanned digits of 8 x 8, a fifth held out."""

    def setup(self, stage: str) -> None:
        """Split."""
        ink, labels = load_digits(return_X_y=True)  # [1797, 64] in 0 .. 16
        images = torch.from_numpy(ink).float().view(-1, 1, 8, 8) / 16
        whole = TensorDataset(images, torch.from_numpy(labels).long())
        self.train, self.val = random_split(whole, [0.8, 0.2], torch.Generator().manual_seed(0))

    def train_dataloader(self) -> DataLoader[list[Tensor]]:
        """In another order every epoch."""
        return DataLoader(self.train, batch_size=64, shuffle=True)

    def val_dataloader(self) -> DataLoader[list[Tensor]]:
        """In order."""
        return DataLoader(self.val, batch_size=256)


def main() -> None:
    """Train, export, verify."""
    pl.seed_everything(0)
    quantize = qat.QuantizationAwareTraining(recipe="w8a8", target="onnxruntime", export="digits.onnx")
    trainer = pl.Trainer(
        max_epochs=15, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[quantize]
    )
    trainer.fit(DigitClassifier(), datamodule=Digits())
    assert quantize.report is not None
    for stage in quantize.report.stages:
        print(f"{stage.top1:6.2f} % top-1, {stage.agreement:6.2f} % agree: {stage.name}")


if __name__ == "__main__":
    main()
