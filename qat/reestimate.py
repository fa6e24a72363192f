"""BatchNorm statistics measured again, under the weights and grids that will be deployed.

    mean = average over batches of the batch mean        var = average of the unbiased batch variance

Running averages lag behind weights that jump between integers, the more the fewer bits there are; folding then bakes in
statistics of weights that are gone. Source: Nagel et al. 2022, arXiv:2203.11086, section 3.2; Wu and Johnson 2021,
arXiv:2105.07576, section 3, for the plain average.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor, nn

from qat.calibrate import forward
from qat.errors import CalibrationError
from qat.placement.prepared import batchnorms
from qat.switches import as_deployed


@torch.no_grad()
def reestimate_batchnorm(prepared: nn.Module, batches: Iterable[Any], *, max_batches: int | None = None) -> int:
    """Replace BatchNorm's running statistics by plain averages over batches; returns how many were seen.

    Everything else stays: weights, ranges, modes, switches. Call it after training, before `qat.convert`; batches of
    the size and augmentation of training, 50 or so.

    Args:
        prepared: a calibrated model from `qat.prepare`, or a module that holds one.
        batches: inputs, or tuples whose first element is the input, or dicts of keyword inputs.
        max_batches: stop after so many.

    Raises:
        PlacementError: no quantizer in the model.
        CalibrationError: no batch.
    """
    norms = _tracking(prepared)
    before = [(n.momentum, cast(Tensor, n.num_batches_tracked).clone()) for n in norms]
    count = 0
    with as_deployed(prepared):  # no quantizer learns, and dropout is off
        try:
            for norm in norms:
                norm.training, norm.momentum = True, None  # torch's way to say: the plain average
                cast(Tensor, norm.num_batches_tracked).zero_()
            for batch in islice(batches, max_batches):
                forward(prepared, batch)
                count += 1
        finally:
            for norm, (momentum, tracked) in zip(norms, before, strict=True):
                norm.momentum = momentum
                cast(Tensor, norm.num_batches_tracked).copy_(tracked)
    if count == 0:
        raise CalibrationError("re-estimation saw no batch; pass at least one, e.g. a DataLoader over training images")
    return count


def _tracking(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    norms = cast(list[nn.modules.batchnorm._BatchNorm], batchnorms(model))
    return [norm for norm in norms if norm.track_running_stats and norm.num_batches_tracked is not None]  # not frozen
