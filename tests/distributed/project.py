"""A stranger's project on two processes, with the callback in it: run by test_lightning.py.

Each rank writes rank<R>.pt into the folder that it is given.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from qat.training import Classifier, QuantizationAwareTraining, SeedEveryEpoch


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.norm(self.conv(x))).mean((2, 3)))


class Keep(pl.Callback):
    """Writes down how a process ends, and in which phase each step was."""

    def __init__(self, folder: Path, callback: QuantizationAwareTraining) -> None:
        self.folder, self.callback, self.phases = folder, callback, list[str]()

    def on_train_batch_end(self, *_: Any) -> None:
        self.phases.append(str(self.callback.phase))

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        report = self.callback.report
        found = {
            "state": {k: v.clone() for k, v in pl_module.state_dict().items()},
            "phases": self.phases,
            "processes": trainer.world_size,
            "agreement": report.stages[-1].agreement if report else None,
            "top1": float(trainer.callback_metrics["val/top1"]),
        }
        torch.save(found, self.folder / f"rank{trainer.global_rank}.pt")


def main(folder: Path, strategy: str, recipe: str, sync: str) -> None:
    torch.manual_seed(0)
    images, labels = torch.randn(24, 3, 8, 8), torch.arange(24) % 4
    loader = DataLoader(TensorDataset(images, labels), batch_size=4)
    module = Classifier(Net(), num_classes=4, optimizer=partial(SGD, lr=0.05, momentum=0.9))
    callback = QuantizationAwareTraining(
        recipe=recipe, calibration_batches=2, freeze_observers_at=0.5, export=folder / "model.onnx"
    )
    if strategy == "ddp_spawn":
        callback.prepare(module, images[:2])
    trainer = pl.Trainer(
        accelerator="cpu", devices=2, strategy=strategy, sync_batchnorm=sync == "synced", max_epochs=2,
        callbacks=[callback, SeedEveryEpoch(0), Keep(folder, callback)], default_root_dir=folder, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, loader, loader)
    trainer.validate(module, loader, verbose=False)  # the processes meet again


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), *sys.argv[2:])
