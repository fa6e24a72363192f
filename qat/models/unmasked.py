"""Pruned weights of a checkpoint as a model without masks has them.

X_orig, X_mask    ->  X = X_orig * X_mask       while torch.nn.utils.prune masks the layer
X, X_mask         ->  X = X * X_mask            after quantization-aware training that kept the mask
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from qat.models.state_file import StateFile

MASK, ORIG = "_mask", "_orig"


def unmasked(state: StateFile, wanted: Collection[str]) -> tuple[StateFile, int]:
    """The checkpoint with masks multiplied in, and how many there were.

    Args:
        state: what was read.
        wanted: names of the model's tensors; a model with masks of its own is given those of the checkpoint.
    """
    own = {name.rpartition(".")[2] for name in wanted}
    tensors, count = dict(state.tensors), 0
    for name, mask in state.tensors.items():
        base = name.removesuffix(MASK)
        source = next((key for key in (base + ORIG, base) if key in tensors), None)
        if base == name or source is None or name.rpartition(".")[2] in own:
            continue
        if tensors[source].shape == mask.shape and tensors[source].is_floating_point():
            del tensors[name]
            tensors[base] = tensors.pop(source) * mask
            count += 1
    return replace(state, tensors=tensors), count
