"""Over all processes of a training: what one process would find in their batches together.

    range     low, high = min over processes, max over processes    exact; one reduction: the max of (-low, high)
    counts    c = sum over processes                                exact; of a histogram
    mean      m = sum over processes / their number                 of percentiles, which no reduction can join

Every process ends with the same bits. A process without a group (torch.distributed), or alone in it, gets back what it
gave. All processes of a group must call these together, as they do when each trains the same model on its own batches.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor


def several() -> bool:
    """Whether this process trains together with others."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def range_across(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest `low` and largest `high` of all processes; NaN anywhere is an infinite range everywhere."""
    if not several():
        return low, high
    # a maximum may drop NaN, and then one process alone would see that something is wrong
    ends = torch.stack((-low, high)).nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf)
    ends = _reduced(ends, dist.ReduceOp.MAX)
    return -ends[0], ends[1]


def sum_across(x: Tensor) -> Tensor:
    """The sum of `x` over all processes."""
    return _reduced(x.clone(), dist.ReduceOp.SUM) if several() else x


def mean_across(x: Tensor) -> Tensor:
    """The mean of `x` over all processes."""
    return sum_across(x) / dist.get_world_size() if several() else x


def any_across(flag: bool, device: torch.device | str = "cpu") -> bool:
    """Whether `flag` is true in any process.

    Args:
        flag: of this process.
        device: where the model is, which is where processes talk fastest.
    """
    if not several():
        return flag
    return bool(_reduced(torch.tensor(float(flag), device=device), dist.ReduceOp.MAX))


def _reduced(x: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
    """`x`, reduced in place where its device can; NCCL alone reduces nothing on the CPU."""
    backends = dist.get_backend_config()  # e.g. cuda:nccl, or cpu:gloo,cuda:nccl
    device = x.device if f"{x.device.type}:" in backends else torch.device(backends.partition(":")[0])
    reduced = x.to(device)
    dist.all_reduce(reduced, operation)
    return reduced.to(x.device)
