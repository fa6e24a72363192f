"""Any stages beside each other on the same batches: the parity table of what has no fake-quant model.

    float | integer reference | runtime, optimizations off | runtime, default

`verify` is the one for models from `qat.prepare`, and looks into them where they depart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from qat.calibrate import labels_of
from qat.errors import DataError
from qat.inputs import Inputs
from qat.verify import ParityReport, Tally, Tolerance

Run = Callable[[Inputs], Tensor]


@torch.no_grad()
def ladder(
    stages: Mapping[str, Run],
    batches: Iterable[Any],
    *,
    base: str,
    free: tuple[str, ...] = (),
    tolerance: Tolerance | None = None,
    hint: str = "",
) -> ParityReport:
    """The parity table of `stages`; differences of their outputs are in units of the output.

    Args:
        stages: by name, what maps inputs to an output `[N, classes]`.
        batches: inputs `[N, ...]`, alone or with labels `[N]`.
        base: the stage that the others are compared with.
        free: stages that may depart as far as they like, such as `float`.
        tolerance: how far the others may be from the base.
        hint: what to do when the gate fails.

    Raises:
        DataError: no batch.
    """
    tallies = {name: Tally(name, name not in (*free, base)) for name in stages}
    examples, labelled = 0, True
    for batch in batches:
        x, labels = Inputs.of(batch), labels_of(batch)
        reference, previous = stages[base](x), None
        for name, run in stages.items():
            output = reference if name == base else run(x)
            tallies[name].add(output, reference, labels, 1.0, previous)
            previous = output
        examples += len(x)
        labelled &= labels is not None
    if not examples:
        raise DataError("verification saw no batch; pass the validation split, e.g. its DataLoader")
    return ParityReport(
        stages=tuple(t.stage(examples, labelled) for t in tallies.values()),
        examples=examples,
        step=None,
        tolerance=tolerance or Tolerance(),
        hint=hint,
        base=base,
    )
