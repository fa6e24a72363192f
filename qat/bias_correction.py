"""The mean error that rounding weights leaves in each output channel, taken out of the bias.

    d_c = E[y'_c] - E[y_c]         y: a layer's output in float, y': with fake-quant up to and including this layer
    bias_c -= d_c                  behind a BatchNorm: running_mean_c += d_c, which is the same

Layer by layer, each seeing the corrected ones before it. Source: Nagel et al. 2019, arXiv:1906.04721, section 4.2; the
expectations are measured, as in its appendix D. For post-training quantization; training takes care of it by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor, nn

from qat.calibrate import forward
from qat.errors import CalibrationError, PlacementError
from qat.layers import FakeQuantLinear, FakeQuantWeight
from qat.placement.modules import PreparedModules
from qat.placement.prepared import PreparedModel, quantizers
from qat.switches import as_deployed, fake_quant

Norm = nn.modules.batchnorm._BatchNorm


@torch.no_grad()
def correct_biases(prepared: PreparedModel, batches: Iterable[Any], *, max_batches: int = 8) -> tuple[str, ...]:
    """Correct the biases of a calibrated model in place; returns the layers that have none to correct.

    Runs the model once in float, and once per layer with fake quantization.

    Args:
        prepared: a calibrated model; its mode and switches are as before afterwards.
        batches: inputs, or tuples whose first element is the input, or dicts of keyword inputs; kept in memory.
        max_batches: use so many.

    Raises:
        PlacementError: not a prepared model, or one without a graph.
        CalibrationError: no batch, or ranges that were never observed.
    """
    kept = batches_for("bias correction", prepared, batches, max_batches)
    without = []
    with as_deployed(prepared):
        layers = weighted_in_order(prepared)
        fake_quant(prepared, enabled=False)
        wanted = _means(prepared, list(layers), kept)
        fake_quant(prepared, enabled=True)
        for layer, (name, norm) in layers.items():
            if norm is None and layer.bias is None:
                without.append(name)
                continue
            change = _means(prepared, [layer], kept)[layer] - wanted[layer]
            if norm is not None:
                cast(Tensor, norm.running_mean).add_(change)
            else:
                layer.bias.sub_(change)
    return tuple(without)


def batches_for(what: str, prepared: PreparedModel, batches: Iterable[Any], max_batches: int) -> list[Any]:
    """The batches that `what` goes along the graph of a calibrated model with.

    Raises:
        PlacementError: not a prepared model, or one without a graph, which does not say which layer follows which.
        CalibrationError: no batch, or ranges that were never observed.
    """
    if not isinstance(prepared, PreparedModel):
        raise PlacementError(f"{what} needs a model from qat.prepare, got {type(prepared).__name__}")
    if isinstance(prepared, PreparedModules):
        raise PlacementError(
            f"{what} goes along the graph of {prepared.plan.model}, and placement=modules has none; use placement=graph"
        )
    kept = list(islice(batches, max_batches))
    if not kept:
        raise CalibrationError(f"{what} saw no batch; pass at least one, e.g. a DataLoader")
    for name, quantizer in quantizers(prepared).items():
        quantizer.require_calibrated(name)
    return kept


def weighted_in_order(prepared: PreparedModel) -> dict[FakeQuantWeight, tuple[str, Norm | None]]:
    """Fake-quant layers in the order of the evaluation graph, with their names and the BatchNorm that follows them."""
    modules = dict(prepared.named_modules())
    found: dict[FakeQuantWeight, tuple[str, Norm | None]] = {}
    for node in prepared.graphs[False].nodes:
        layer = modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(layer, FakeQuantWeight):
            user = next(iter(node.users)) if len(node.users) == 1 else None
            norm = modules.get(str(user.target)) if user is not None and user.op == "call_module" else None
            found.setdefault(layer, (str(node.target), norm if isinstance(norm, Norm) else None))
    return found


def _means(
    prepared: PreparedModel, layers: Sequence[FakeQuantWeight], batches: Sequence[Any]
) -> dict[FakeQuantWeight, Tensor]:
    """Mean output of each layer per channel, `[C]`."""
    sums: dict[FakeQuantWeight, Tensor] = {}
    counts: dict[FakeQuantWeight, int] = {}

    def take(layer: nn.Module, args: Any, output: Tensor) -> None:
        layer = cast(FakeQuantWeight, layer)
        y = output.double() if isinstance(layer, FakeQuantLinear) else output.double().movedim(1, -1)
        y = y.flatten(0, -2) if y.ndim > 1 else y[None]
        sums[layer] = sums.get(layer, torch.zeros(1, device=y.device)) + y.sum(0)
        counts[layer] = counts.get(layer, 0) + len(y)

    handles = [layer.register_forward_hook(take) for layer in layers]
    try:
        for batch in batches:
            forward(prepared, batch)
    finally:
        for handle in handles:
            handle.remove()
    return {layer: (sums[layer] / counts[layer]).to(layer.weight.dtype) for layer in sums}
