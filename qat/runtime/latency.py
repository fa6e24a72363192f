"""Latency of two artefacts, interleaved: on a busy machine only numbers taken side by side compare."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping

from torch import Tensor

from qat.runtime.base import Runtime

WARM_UP = 5  # calls before timing: allocation, thread start


def interleaved(runtimes: Mapping[str, Runtime], x: Tensor, *, repeats: int = 50) -> dict[str, float]:
    """Median milliseconds per call of each runtime on `x`, one call of each in turn.

    Args:
        runtimes: by name.
        x: one input `[N, ...]`.
        repeats: timed calls of each.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runtimes}
    for i in range(WARM_UP + repeats):
        for name, run in runtimes.items():
            start = time.perf_counter()
            run(x)
            if i >= WARM_UP:
                seconds[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(taken) for name, taken in seconds.items()}
