"""What two processes compute together, and one alone on the joint batch: run by test_numerics.py under torchrun.

Each rank writes rank<R>.pt into the folder that it is given.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import qat
from qat.errors import NumericsError, ProcessError
from qat.functional.across import any_across
from qat.observers import Histogram, MinMax, MovingAverage, Observer, Percentile
from qat.spec import IntSpec
from qat.training.finite import require_finite_loss
from qat.training.processes import agreed, alike, by_first, first

OBSERVERS = {
    "min_max": MinMax,
    "latest": lambda **o: MinMax(latest=True, **o),
    "moving_average": MovingAverage,
    "histogram": lambda **o: Histogram(bins=64, spec=IntSpec(bits=4), **o),
    "percentile": lambda **o: Percentile(percent=90.0, **o),
}
BATCHES = [torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(i)) * (i + 1) for i in range(4)]
IMAGES = torch.randn(16, 3, 6, 6, generator=torch.Generator().manual_seed(9))


class Net(nn.Module):
    def __init__(self, norm: type[nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, bias=False), norm(4)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.norm(self.conv(x))).mean((2, 3)))


def ranges(observer: Observer, batches: list[Tensor]) -> tuple[Tensor, Tensor]:
    for batch in batches:
        observer.observe(batch)
    return observer.low.clone(), observer.high.clone()


def trained(
    model: nn.Module, images: Tensor, *, recipe: str = "w8a8", synced: bool = False, ddp: bool = False
) -> dict[str, Tensor]:
    """Calibrated, then three steps of SGD on the mean of the outputs' squares."""
    prepared = qat.prepare(model, images[:2], recipe)
    qat.calibrate(prepared, [images])
    if synced:
        qat.sync_batchnorm(prepared)
    stepped: Any = DistributedDataParallel(prepared) if ddp else prepared
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.1, momentum=0.9)
    stepped.train()
    for _ in range(3):
        optimizer.zero_grad()
        stepped(images).square().mean().backward()
        optimizer.step()
    return {k: v.clone() for k, v in prepared.state_dict().items()}


def net(norm: type[nn.Module] = nn.BatchNorm2d) -> Net:
    torch.manual_seed(0)
    return Net(norm)


def stopped(loss: float) -> str:
    try:
        require_finite_loss(torch.tensor(loss), step=3, module=nn.Linear(1, 1), run=lambda: None)
    except NumericsError as error:
        return str(error)
    return ""


def poisoned(rank: int) -> str:
    """One process calibrates on NaN."""
    images = IMAGES.clone()
    if rank == 1:
        images[0] = float("nan")
    try:
        qat.calibrate(qat.prepare(net(), images[:2].nan_to_num()), [images])
    except NumericsError as error:
        return str(error)
    return ""


def together(rank: int) -> dict[str, Any]:
    """What the first process decides and does."""
    norm = nn.BatchNorm1d(3)
    norm.running_mean.fill_(rank)
    alike([norm])
    found: dict[str, Any] = {
        "agreed": agreed({"rank": rank}),
        "worked": by_first(lambda: f"by {rank}"),
        "first": first(),
        "alike": norm.running_mean.tolist(),
    }
    try:
        by_first(lambda: 1 / 0)
    except (ZeroDivisionError, ProcessError) as error:
        found["failed"] = f"{type(error).__name__}: {error}"
    return found


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    share = slice(8 * dist.get_rank(), 8 * dist.get_rank() + 8) if dist.is_initialized() else slice(None)
    halves = [half(b) for b in BATCHES]
    found: dict[str, Any] = {name: ranges(make(), halves) for name, make in OBSERVERS.items()}
    found |= {f"{name}, per channel": ranges(make(axis=1, shape=(4,)), halves) for name, make in OBSERVERS.items()}
    ddp = dist.is_initialized()
    found["trained"] = trained(net(), IMAGES[share], ddp=ddp)
    found["trained, lsq"] = trained(net(), IMAGES[share], recipe="w4a4_lsq", ddp=ddp)
    found["trained, synced"] = trained(net(), IMAGES[share], synced=True, ddp=ddp)
    found["trained, synced before"] = trained(net(nn.SyncBatchNorm), IMAGES[share], ddp=ddp)
    if ddp:
        rank = dist.get_rank()
        found["loss"] = stopped(float("nan") if rank else 1.0)
        found["finite"] = stopped(1.0)
        found["poisoned"] = poisoned(rank)
        found["any"] = [any_across(bool(rank)), any_across(False)]
        found["together"] = together(rank)
        prepared = qat.prepare(net(), IMAGES[:2])
        found["calibrated on"] = qat.calibrate(prepared, [IMAGES[share]] * (2 + rank))
    torch.save(found, folder / (f"rank{dist.get_rank()}.pt" if ddp else "alone.pt"))


def half(batch: Tensor) -> Tensor:
    """This process's examples."""
    if not dist.is_initialized():
        return batch
    return batch.chunk(dist.get_world_size())[dist.get_rank()]


if __name__ == "__main__":
    main_folder = Path(sys.argv[1])
    if os.environ["RANK"] == "0":
        main(main_folder)
    dist.init_process_group("gloo")
    main(main_folder)
    dist.destroy_process_group()
