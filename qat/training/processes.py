"""Several processes of one training: they meet, decide alike, and the first one alone writes.

meet        start the processes that a Trainer asks for, or find those that a launcher started (torchrun, SLURM)
agreed      what the first process says, in every one
by_first    the first process works while the others wait; all end alike, in its result or its failure
alike       buffers as the first process has them

What is exchanged here waits as long as the first process works: a group of its own, on the CPU and without a timeout.
"""

from __future__ import annotations

import atexit
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import pytorch_lightning as pl
import torch.distributed as dist
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import nn

from qat.errors import ProcessError
from qat.functional.across import several
from qat.training.strategy import require_own_script, require_replicas

T = TypeVar("T")
PATIENCE = timedelta(days=30)
GRACE = 20.0  # seconds for a process to end by itself once another one has failed
LOST = re.compile(r"closed by peer|reset by peer|Broken pipe|remote process exited|Connection refused|Socket closed")


class _Failure(NamedTuple):
    message: str


def first() -> bool:
    """Whether this is the process that writes; the only one is."""
    return getattr(rank_zero_only, "rank", 0) == 0


def meet(trainer: pl.Trainer) -> None:
    """Start the processes that `trainer` is for, and wait until all are there; nothing for a single one.

    Each runs the same script from its beginning up to here. Later Trainers of the same processes find them.

    Raises:
        ConfigError: a strategy that shards parameters, or starts processes by forking or spawning.
    """
    require_replicas(trainer.strategy)
    launcher = trainer.strategy.launcher
    if launcher is None:
        return
    require_own_script(trainer.strategy)
    launcher.launch(trainer.strategy.setup_environment)
    started: list[subprocess.Popen[bytes]] = getattr(launcher, "procs", [])
    if children := list(started):
        started.clear()  # Lightning would kill this process too, up to five seconds after a child has failed
        threading.Thread(target=_watch, args=(children,), daemon=True).start()
        atexit.register(_end, children)


def agreed(value: T) -> T:
    """The first process's value, in all of them."""
    if not several():
        return value
    group: Any = dist.new_group(backend="gloo", timeout=PATIENCE)
    box: list[Any] = [value]
    with explained_processes():
        dist.broadcast_object_list(box, src=0, group=group)
    dist.destroy_process_group(group)
    return box[0]


def by_first(work: Callable[[], T]) -> T:
    """The result of `work`, which the first process alone does.

    Raises:
        ProcessError: in the others, when `work` failed; with its message.
    """
    if not several():
        return work()
    if not first():
        outcome: Any = agreed(None)
        if isinstance(outcome, _Failure):
            raise ProcessError(f"the first process failed: {outcome.message}")
        return outcome
    try:
        result = work()
    except Exception as error:
        agreed(_Failure(f"{type(error).__name__}: {error}"))
        raise
    agreed(result)
    return result


def alike(modules: Iterable[nn.Module]) -> None:
    """Make buffers what they are in the first process: BatchNorm's statistics, which each has of its own batches."""
    if not several():
        return
    found = [buffer for module in modules for buffer in module.buffers()]
    for buffer, value in zip(found, agreed([buffer.cpu() for buffer in found]), strict=True):
        buffer.copy_(value)


@contextmanager
def explained_processes() -> Iterator[None]:
    """The loss of another process in the block is a `ProcessError`.

    Raises:
        ProcessError: it ended; its own message, if it had time for one, stands above.
    """
    try:
        yield
    except RuntimeError as error:  # of gloo, NCCL, or the store through which they met
        found = LOST.search(str(error))
        if found is None:
            raise
        raise ProcessError(
            f"another process of this run ended ({found[0]}); the reason stands above, or in its own output. Go on "
            "with ckpt_path=last"
        ) from error


def _watch(children: list[subprocess.Popen[bytes]]) -> None:
    """End this process where it does not notice that a child has failed: it may wait for it on an accelerator."""
    while any(child.poll() is None for child in children):
        if any(child.returncode for child in children):
            break
        time.sleep(1.0)
    if any(child.returncode for child in children):
        time.sleep(GRACE)
        os.kill(os.getpid(), signal.SIGKILL)


def _end(children: list[subprocess.Popen[bytes]]) -> None:
    """Leave no process behind."""
    for child in children:
        try:
            child.wait(GRACE / 4)
        except subprocess.TimeoutExpired:
            child.terminate()
