"""A BatchNorm that never learns: statistics, weight and bias are buffers, in training too (torchvision, detectron2).

    y = x * f + (b - mean * f)          f = w / sqrt(var + eps)

Detectors train with it, as their batches are small. Opened to a BatchNorm that stays in evaluation it folds into the
convolution before it like any other. What it computes differs from the class's own order of the sum by float rounding.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from qat.layers.adopt import adopt
from qat.layers.batchnorm import FakeQuantBatchNorm2d

NAME = "FrozenBatchNorm2d"  # by name, as packages have their own
BUFFERS = ("weight", "bias", "running_mean", "running_var")


class FrozenNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` in evaluation, in both modes, with buffers alone."""

    def train(self, mode: bool = True) -> FrozenNorm2d:
        """Switch a quantizer in it; the norm itself stays in evaluation."""
        super().train(mode)
        self.training = False
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """That of a BatchNorm too, which counts its batches."""
        state_dict.pop(f"{prefix}num_batches_tracked", None)
        nn.Module._load_from_state_dict(self, state_dict, prefix, *args)


class FakeQuantFrozenNorm2d(FakeQuantBatchNorm2d, FrozenNorm2d):
    """A frozen norm, activation, quantizer."""


def open_frozen(root: nn.Module) -> nn.Module:
    """`root` with its frozen norms opened, in place."""
    opened: dict[nn.Module, nn.Module] = {}
    for name, module in list(root.named_modules(remove_duplicate=False)):
        if name and type(module).__name__ == NAME and set(BUFFERS) <= set(module._buffers):
            root.set_submodule(name, opened.setdefault(module, _opened(module)))
    return root


def _opened(module: nn.Module) -> FrozenNorm2d:
    norm = adopt(module, FrozenNorm2d)
    norm.training, norm.momentum = False, 0.0
    norm.affine = norm.track_running_stats = True
    norm.num_features, norm.num_batches_tracked = len(norm.running_mean), None  # type: ignore[arg-type]
    return norm
