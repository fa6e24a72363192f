"""Quantization-aware training in a loop of your own, without Lightning: five calls around it.

python examples/plain_loop.py      scanned digits, a quarter of a minute; leaves digits.onnx and says how it compares
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, random_split

import qat

FLOAT_EPOCHS, EPOCHS = 8, 8


def train(model: nn.Module, batches: DataLoader, lr: float) -> None:
    """One epoch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, nesterov=True)
    model.train()
    for images, labels in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()


def main() -> None:
    """Train in float, train quantization-aware, export, verify."""
    torch.manual_seed(0)
    ink, digits = load_digits(return_X_y=True)  # [1797, 64] in 0 .. 16
    whole = TensorDataset(torch.from_numpy(ink).float().view(-1, 1, 8, 8) / 16, torch.from_numpy(digits).long())
    seen, held_out = random_split(whole, [0.8, 0.2])
    batches, val = DataLoader(seen, batch_size=64, shuffle=True), DataLoader(held_out, batch_size=256)

    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip
    for _ in range(FLOAT_EPOCHS):
        train(model, batches, lr=0.1)

    prepared = qat.prepare(model, next(iter(val))[0], recipe="w8a8", target="onnxruntime")
    qat.calibrate(prepared, batches, max_batches=8)
    for epoch in range(EPOCHS):
        qat.observers(prepared, enabled=epoch < EPOCHS // 2)  # ranges follow the data, then stay
        qat.freeze_batchnorm(prepared, frozen=epoch >= 3 * EPOCHS // 4)  # statistics as they will be deployed
        train(prepared, batches, lr=0.01)

    artifact = qat.export(qat.convert(prepared.eval()), "digits.onnx")
    for stage in qat.verify(prepared, artifact, val).stages:
        print(f"{stage.top1:6.2f} % top-1, {stage.agreement:6.2f} % agree: {stage.name}")


if __name__ == "__main__":
    main()
