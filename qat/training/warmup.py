"""Warm-up: the learning rate rises in a straight line to where the schedule begins.

    step k of n, w of them warm:      k < w    (k + 1) / (w + 1) * lr
                                      else     the schedule for n - w steps, at its step k - w

Each group of parameters keeps its own rate. Fine-tuning from calibrated ranges rarely needs it; large rates and batches
may, and trained ranges of 2 and 3 bits, whose first gradients are the largest. Source: Goyal et al. 2017,
arXiv:1706.02677, section 2.2; Loshchilov and Hutter 2017, arXiv:1608.03983, for the cosine that usually follows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LinearLR, LRScheduler, SequentialLR

from qat.errors import ConfigError


def warm_steps(share: float, steps: int) -> int:
    """The w above: `share` of `steps`, at least one, and of several not all."""
    return max(1, min(math.ceil(share * steps), steps - 1))


def with_warmup(
    build: Callable[..., LRScheduler] | None, optimizer: Optimizer, share: float, name: str | None, steps: int
) -> LRScheduler:
    """A schedule behind its warm-up, to be stepped at every step of the optimizer.

    Args:
        build: builds the schedule that follows; None keeps the rate.
        optimizer: whose rates move.
        share: of the steps, in (0, 1).
        name: what `build` calls the number of steps that it is planned for.
        steps: the n above.

    Raises:
        ConfigError: a schedule that moves once an epoch, or has a warm-up of its own.
    """
    warm = warm_steps(share, steps)
    if build is not None and name is None:
        raise ConfigError(
            f"warmup={share} is a share of the steps, and {_name(build)} moves once an epoch; use "
            "torch.optim.lr_scheduler.CosineAnnealingLR, or warmup=0"
        )
    following: Any = None if build is None else build(optimizer, **{str(name): max(steps - warm, 1)})
    if any("max_lr" in group for group in optimizer.param_groups):
        raise ConfigError(f"{_name(build)} has a warm-up of its own, pct_start; set that one, and warmup=0")
    rise = LinearLR(optimizer, 1 / (warm + 1), 1.0, total_iters=warm)
    return rise if following is None else SequentialLR(optimizer, [rise, following], [warm])


def _name(build: Any) -> str:
    return str(getattr(getattr(build, "func", build), "__name__", build))
