"""The aids of training on two processes, one short fit for each: run by test_aids.py under torchrun.

Each rank writes rank<R>.pt into the folder that it is given.
"""

from __future__ import annotations

import copy
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

import qat
from qat.training import (
    AveragedWeights,
    Classifier,
    Distillation,
    OscillationControl,
    QuantizationAwareTraining,
    ReestimatedBatchNorm,
    SeedEveryEpoch,
)

MIXED = replace(qat.QuantRecipe.parse("w8a8"), override={"conv": {"weight": {"bits": 4}}})
FEATURES = Distillation(weight=0.5, features=["norm"], feature_weight=2.0)
# what a fit has besides: for the callback, the classifier, the Trainer; and callbacks
AIDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "ema": {"callbacks": lambda: [AveragedWeights(decay=0.8)]},
    "ema, one scale": {"recipe": "w8a8_per_tensor", "callbacks": lambda: [AveragedWeights(decay=0.8)]},
    "ema, accumulated": {"callbacks": lambda: [AveragedWeights(decay=0.8)], "accumulate_grad_batches": 2},
    "damped": {"callbacks": lambda: [OscillationControl(damp=0.5)]},
    "frozen": {
        "recipe": "w4a4_lsq", "callbacks": lambda: [OscillationControl(freeze=0.05, momentum=0.3)],
    },
    "mixup": {"mixup": 0.4},
    "mixed widths": {"recipe": MIXED},
    "activations later": {"activations_from": 0.5},
    "trained activations later": {"recipe": "w4a4_lsq", "activations_from": 0.5},
    "features": {"distill": FEATURES},
    "statistics": {"callbacks": lambda: [ReestimatedBatchNorm(batches=4)]},
    "all": {
        "recipe": "w4a4_lsq", "activations_from": 0.5, "mixup": 0.4, "distill": FEATURES,
        "callbacks": lambda: [
            OscillationControl(damp=0.5), AveragedWeights(decay=0.8), ReestimatedBatchNorm(batches=4)
        ],
    },
}  # fmt: skip


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.norm(self.conv(x))).mean((2, 3)))


class Keep(pl.Callback):
    """Writes down where each step left the module."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        self.steps.append({k: v.clone() for k, v in module.state_dict().items()})


def fit(
    *,
    recipe: Any = "w8a8",
    activations_from: float = 0.0,
    mixup: float = 0.0,
    distill: Distillation | None = None,
    callbacks: Any = list,
    **options: Any,
) -> dict[str, Any]:
    torch.manual_seed(0)
    images, labels = torch.randn(32, 3, 8, 8), torch.arange(32) % 4
    loader = DataLoader(TensorDataset(images, labels), batch_size=4)
    network = Net()
    teacher = None if distill is None else copy.deepcopy(network)
    optimizer = partial(SGD, lr=0.2, momentum=0.9)
    module = Classifier(network, num_classes=4, optimizer=optimizer, mixup=mixup, distill=distill, teacher=teacher)
    callback = QuantizationAwareTraining(
        recipe=recipe, calibration_batches=2, freeze_observers_at=0.5, activations_from=activations_from
    )
    keep, more = Keep(), callbacks()
    trainer = pl.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=3, logger=False, enable_checkpointing=False,
        callbacks=[callback, SeedEveryEpoch(0), *more, keep], enable_progress_bar=False, enable_model_summary=False,
        **options,
    )  # fmt: skip
    trainer.fit(module, loader, loader)
    control = next((c for c in more if isinstance(c, OscillationControl)), None)
    return {
        "state": {k: v.clone() for k, v in module.state_dict().items()},
        "steps": keep.steps,
        "top1": float(trainer.callback_metrics["val/top1"]),
        "bits": {name: q.spec.bits for name, q in qat.quantizers(module.model).items()},
        "frozen": {} if control is None else control.frozen(),
    }


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    found = {name: fit(**aid) for name, aid in AIDS.items()}
    torch.save(found, folder / f"rank{dist.get_rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
