"""Lightning's image classification example with one line added: the Trainer gets a callback, and training ends in int8.

python examples/lightning_callback.py      scanned digits, half a minute; leaves digits.onnx and says how it compares

Its parts are those of Lightning's own example (two convolutions, dropout, Adadelta, a rate that decays, fit and then
test); the data are the 8 x 8 digits that scikit-learn brings along, because MNIST would have to be downloaded.
"""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, random_split
from torchmetrics.classification import MulticlassAccuracy

import qat


class ImageClassifier(pl.LightningModule):
    """Knows nothing of quantization; its layers lie directly on it."""

    def __init__(self, lr: float = 1.0, gamma: float = 0.8) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.conv1, self.conv2 = nn.Conv2d(1, 32, 3), nn.Conv2d(32, 64, 3)
        self.dropout1, self.dropout2 = nn.Dropout(0.25), nn.Dropout(0.5)
        self.fc1, self.fc2 = nn.Linear(64 * 2 * 2, 128), nn.Linear(128, 10)
        self.accuracy = MulticlassAccuracy(10, average="micro")

    def forward(self, images: Tensor) -> Tensor:
        """`[N, 1, 8, 8] -> [N, 10]`."""
        x = F.relu(self.conv2(F.relu(self.conv1(images))))
        x = torch.flatten(self.dropout1(F.max_pool2d(x, 2)), 1)
        return self.fc2(self.dropout2(F.relu(self.fc1(x))))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """The loss."""
        images, labels = batch
        return F.cross_entropy(self(images), labels)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Top-1."""
        images, labels = batch
        self.accuracy(self(images), labels)
        self.log("top1", self.accuracy, prog_bar=True)

    test_step = validation_step

    def configure_optimizers(self) -> Any:
        """From `self.parameters()`: those of the fake-quant network by then."""
        optimizer = torch.optim.Adadelta(self.parameters(), lr=self.hparams["lr"])
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, self.hparams["gamma"])]


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

    test_dataloader = val_dataloader


def main() -> None:
    """Train, export, verify."""
    pl.seed_everything(0)
    trainer = pl.Trainer(
        max_epochs=12,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        callbacks=[qat.QuantizationAwareTraining(recipe="w8a8", target="onnxruntime", export="digits.onnx")],
    )
    module, digits = ImageClassifier(), Digits()
    trainer.fit(module, datamodule=digits)
    trainer.test(module, datamodule=digits)

    (quantize,) = (c for c in trainer.callbacks if isinstance(c, qat.QuantizationAwareTraining))
    assert quantize.report is not None
    for stage in quantize.report.stages:
        print(f"{stage.top1:6.2f} % top-1, {stage.agreement:6.2f} % agree: {stage.name}")


if __name__ == "__main__":
    main()
