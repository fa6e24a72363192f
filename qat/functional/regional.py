"""The epilogue's forward in fused loops, compiled once for all layers: `torch.compile(dynamic=True)`.

    alpha = gamma / sqrt(v + eps)     beta' = beta - m * alpha      BatchNorm as one multiplication and addition
    sums, sums of squares of the rows of x - k (learning: smallest, largest of x)         one pass over x
    y = clamp(round((x * alpha + beta') / s), a, b) * s                                   one pass

The range that an observer is shown comes from the first pass too: BatchNorm is monotone in each channel, so the ends of
n are among those of x, normalised. Results equal those of epilogue.py within float32's rounding: a value that near a
tie may land on the next step. Backward is epilogue.py's; a compiled one was slower (docs/log.md).

A compiled function is reached through a cache by device, never through a module's attribute: models copy and pickle as
before. The first shape that it sees has no two extents alike; from equal ones dynamo would conclude that they always
are, and compile again for every layer. What does not fit (channels-last memory, short rows, inference mode, a machine
without compiler) runs through epilogue.py.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qat.functional.epilogue import (
    SHORT_ROW,
    Norm,
    NormActQuant,
    Observe,
    Quant,
    keep,
    near_mean,
    norm_act_quant,
    own_stats,
    row_length,
    rows,
    stats_of_sums,
)
from qat.functional.ste import Clamp, grid, packed

FIRST_SHAPE = (33, 48, 784)  # [N, C, S], large enough that loops are made parallel, and no two alike


def sums(x: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row of `x - shift`: sum, and sum of squares. `[N, C, S]`, shift `[C]` -> `[N, C]` each."""
    d = x - shift[:, None]
    return d.sum(2), d.square().sum(2)


def sums_and_ends(x: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `sums`, and of each row of `x`: smallest, largest. `[N, C]` each."""
    return *sums(x, shift), x.amin(2), x.amax(2)


def land(x: Tensor, alpha: Tensor, beta: Tensor, to: Tensor) -> Tensor:
    """`x * alpha + beta` on the grid `to`, see `ste.packed`; alpha and beta are `[C]`."""
    scale, first, last, _, _ = to.unbind()
    return ((x * alpha[:, None] + beta[:, None]) / scale).clamp(first, last).round() * scale


class Loops(NamedTuple):
    """The functions above, compiled."""

    sums: Callable[..., Any]
    sums_and_ends: Callable[..., Any]
    land: Callable[..., Any]


@functools.cache
def loops(device: str) -> Loops | None:
    """The compiled functions for one type of device; None, after a warning, where they cannot be compiled."""
    compiled = Loops(*(torch.compile(f, dynamic=True) for f in (sums, sums_and_ends, land)))
    x = torch.zeros(FIRST_SHAPE, device=device)
    channel, to = torch.ones(FIRST_SHAPE[1], device=device), torch.ones(5, device=device)
    try:
        with torch.no_grad():
            compiled.sums(x, channel), compiled.sums_and_ends(x, channel), compiled.land(x, channel, channel, to)
    except (RuntimeError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        warnings.warn(
            f"torch.compile does not work here ({reason}), so the epilogues run as eager operators: same numbers, more "
            "time. On a CPU it needs a C++ compiler (g++, or CXX=...)",
            stacklevel=3,
        )
        return None
    return compiled


class _Regional(NormActQuant):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, norm: Norm, activation: Clamp, quant: Quant,
        observe: Observe | None, run: Loops,
    ) -> Tensor:  # fmt: skip
        r = rows(x.detach())
        mean, var = norm.running_mean, norm.running_var
        by_sums = norm.batch_stats and x.device.type == "cpu"  # elsewhere BatchNorm's own statistics are fast
        shift = near_mean(r) if by_sums else torch.zeros_like(mean)
        if observe is not None:
            s, squares, low, high = run.sums_and_ends(r, shift)
        elif by_sums:
            s, squares = run.sums(r, shift)
        if norm.batch_stats:
            mean, var = (by_sums and stats_of_sums(x, norm, s, squares, shift)) or own_stats(x, norm)
        alpha = weight * torch.rsqrt(var + norm.eps)
        beta = bias - mean * alpha
        if observe is not None:
            observe(torch.stack((low.amin(0), high.amax(0))) * alpha + beta)  # moves quant, before it is read
        to = grid(*quant, activation)
        keep(ctx, norm, to, x, weight, bias, mean, var)
        return run.land(r, alpha, beta, packed(to)).view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *NormActQuant.backward(ctx, *grads), None


def regional_norm_act_quant(
    x: Tensor, norm: Norm, activation: Clamp, quant: Quant, observe: Observe | None = None
) -> Tensor:
    """`norm_act_quant` in compiled loops, wherever they fit.

    Args:
        x: `[N, C, ...]`, a convolution's output.
        norm: the BatchNorm; its running statistics move when `batch_stats`.
        activation: the clamp between BatchNorm and quantizer.
        quant: the quantizer's tensors.
        observe: shown `[2, C]`, values among which the smallest and largest of BatchNorm's output are.
    """
    fits = x.is_contiguous() and min(x.shape[:2]) > 1 and row_length(x) >= SHORT_ROW
    fits = fits and not torch.is_inference_mode_enabled() and not torch.compiler.is_compiling()
    run = loops(x.device.type) if fits else None
    if run is None:
        return norm_act_quant(x, norm, activation, quant, observe)
    return _Regional.apply(x, norm.weight, norm.bias, norm, activation, quant, observe, run)
