"""Set the ranges of a prepared model from data, before any training: post-training quantization.

Batches go through the model in evaluation mode with fake quantization off, so that every range is that of the float
model; a moving average starts as the plain mean over these batches.

Where several processes train together, all of them calibrate, each on its batches, as long as every one has another.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from qat.errors import CalibrationError, NumericsError
from qat.functional.across import any_across
from qat.inputs import Inputs
from qat.placement.prepared import PreparedModel, device_of, quantizers
from qat.quantizers import FakeQuantize
from qat.switches import fake_quant


@torch.no_grad()
def calibrate(prepared: nn.Module, batches: Iterable[Any], *, max_batches: int | None = None) -> int:
    """Observe the ranges of all values and weights; returns how many batches were seen.

    Forgets what was observed before. The model's mode and switches are as before afterwards, with fake quantization on.

    Args:
        prepared: a model from `qat.prepare`, or a module that holds one.
        batches: inputs, alone or with labels, several of them or by keyword, as `qat.inputs` lists.
        max_batches: stop after so many.

    Raises:
        CalibrationError: no batch.
        NumericsError: NaN or Inf in a value; names the first quantizer that saw it and the batch.
    """
    found = _in_order(prepared)
    modes = {module: module.training for module in prepared.modules()}
    observing = {q: q.observing for q in found.values()}
    fake_quant(prepared, enabled=False)
    prepared.eval()
    for quantizer in found.values():
        quantizer.reset()
        quantizer.observing = True
        quantizer.train()  # a quantizer learns in training mode; the model around it stays in evaluation mode
    count = 0
    try:
        for batch in _in_step(islice(batches, max_batches), prepared):
            forward(prepared, batch)
            count += 1
            _require_finite(found, count)
    finally:
        for module, mode in modes.items():
            module.training = mode
        for quantizer, was in observing.items():
            quantizer.observing = was
        fake_quant(prepared, enabled=True)
    if count == 0:
        raise CalibrationError("calibration saw no batch; pass at least one, e.g. a DataLoader over training images")
    return count


def forward(model: nn.Module, batch: Any) -> Any:
    """Call `model` on the inputs of a batch, moved to the model's device."""
    return Inputs.of(batch).call(model, device_of(model))


def labels_of(batch: Any) -> Tensor | None:
    """Integer labels `[N]` in a batch, if it has any."""
    if isinstance(batch, list | tuple) and len(batch) > 1 and isinstance(batch[1], Tensor):
        return batch[1]
    return None


def _in_step(batches: Iterable[Any], prepared: nn.Module) -> Iterator[Any]:
    """The batches until any process has no more: their ranges are exchanged batch by batch."""
    device, ended = device_of(prepared), object()
    iterator = iter(batches)
    while not any_across((batch := next(iterator, ended)) is ended, device):
        yield batch


def _in_order(prepared: nn.Module) -> dict[str, FakeQuantize]:
    """All quantizers by name, in the order in which values reach them: the first broken one is where it began."""
    names = {quantizer: name for name, quantizer in quantizers(prepared).items()}
    ordered: dict[str, FakeQuantize] = {}
    for model in prepared.modules():
        if isinstance(model, PreparedModel):
            for node in model.graphs[False].nodes:
                if node.op == "call_module":
                    reached = quantizers(model.get_submodule(str(node.target))).values()
                    ordered |= {names[quantizer]: quantizer for quantizer in reached}
    return ordered | {name: quantizer for quantizer, name in names.items() if name not in ordered}


def _require_finite(found: Mapping[str, Any], batch: int) -> None:
    for name, quantizer in found.items():
        if quantizer.calibrated and not torch.isfinite(quantizer.scale).all():
            raise NumericsError(
                f"NaN or Inf reached {name!r} in calibration batch {batch}. Check that batch for broken inputs, "
                "and the float model's weights"
            )
