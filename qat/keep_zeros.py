"""Masks for the zeros that pruning has left in a float model, so that they are zeros in its integers too.

For weights whose pruning was made permanent, or that came from a file. A model that torch.nn.utils.prune still masks
needs nothing: `qat.prepare` keeps its masks (layers/pruned.py).
"""

from __future__ import annotations

from torch import nn
from torch.nn.utils import prune

from qat.errors import PlacementError
from qat.layers import pruned


def keep_zeros(model: nn.Module) -> nn.Module:
    """A copy in which every weight of a convolution or linear layer that is zero stays zero, whatever trains it.

    Each such layer is masked by torch.nn.utils.prune, which `qat.prepare` understands. A layer that starts at zero by
    design, as the last one of a branch may, would never learn: give it values first.

    Args:
        model: a float model; untouched.

    Raises:
        PlacementError: no weight is zero.
    """
    root = pruned.copied(model, masks=False)
    masks = {module: mask for module in root.modules() if (mask := pruned.zeros_of(module)) is not None}
    if not masks:
        raise PlacementError(
            f"no weight of {type(model).__name__} is zero, so there is nothing to keep; prune it first, or leave "
            "keep_zeros out"
        )
    for module, mask in masks.items():
        prune.custom_from_mask(module, "weight", mask)
    return root
